"""`kfp run FILE.py`: check every parameter, then run the pipeline here, in containers or without, or submit it to a cluster."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from stagecraft.contract.cluster import SECTION
from stagecraft.contract.errors import EXIT_USER_ERROR, UserError
from stagecraft.contract.files import write_atomic
from stagecraft.contract.kfp_task import RUNNER_VARIABLE
from stagecraft.contract.lock import alone
from stagecraft.contract.params import VARIABLE, read_text, refuse_another_profile
from stagecraft.contract.profile import override
from stagecraft.contract.repository import check_checkout
from stagecraft.contract.stages import STAGES

_EPILOG = """\
Without an endpoint the pipeline runs on this machine: every task has DVC bring its stage up to date, so what is unchanged is skipped.
With one it is submitted to that Kubeflow Pipelines server. MLflow keeps the record (mlflow.db, or $MLFLOW_TRACKING_URI).

examples:
  kfp run pipelines/full.py
  kfp run pipelines/full.py pretrain.steps=100 rl.steps=20
  kfp run --docker pipelines/full.py
  kfp run pipelines/full.py --endpoint http://localhost:8080

Every other kfp command is stock Kubeflow Pipelines, `kfp run create`, `list`, `get` and the like among them: kfp --help.
"""


def parser() -> argparse.ArgumentParser:
    """The command line of `kfp run FILE.py`."""
    made = argparse.ArgumentParser(prog="kfp", description="Run a Stagecraft pipeline, here or on a cluster.", epilog=_EPILOG,
                                   usage="kfp run FILE.py [NAME=VALUE ...] [options]", formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", help=argparse.SUPPRESS)
    made.add_argument("file", metavar="FILE.py", help="the pipeline, e.g. pipelines/full.py")
    made.add_argument("assignments", nargs="*", metavar="NAME=VALUE",
                      help="override a parameter, as in pretrain.steps=100 (written to params.yaml), or a pipeline argument")
    made.add_argument("--profile", type=Path, metavar="FILE", help="make this whole profile params.yaml, once all is checked")
    made.add_argument("--from", dest="first", metavar="STAGE", choices=list(STAGES),
                      help="start at STAGE and take the artifacts of the stages before it as they lie; for runs here, not on a cluster")
    made.add_argument("--docker", action="store_true",
                      help="run here, each task in a container of its stage's image (Docker, or podman's service at $DOCKER_HOST)")
    made.add_argument("--endpoint", default=os.environ.get("KFP_ENDPOINT"), metavar="URL",
                      help="submit to this Kubeflow Pipelines API server (default: $KFP_ENDPOINT; unset: run here)")
    made.add_argument("-n", "--namespace", default=os.environ.get("KFP_NAMESPACE"),
                      help="of the run, where the server is for several users ($KFP_NAMESPACE)")
    made.add_argument("--existing-token", default=os.environ.get("KFP_EXISTING_TOKEN"), metavar="TOKEN",
                      help="bearer token for the API server ($KFP_EXISTING_TOKEN)")
    made.add_argument("--experiment", default="stagecraft", help="experiment on the cluster (default: stagecraft)")
    made.add_argument("--watch", action="store_true", help="wait for the submitted run to end")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status. All is checked before params.yaml is written.

    Raises:
        UserError: a file, parameter or address is wrong, or another `kfp run` is at work here.
    """
    options = parser().parse_intermixed_args(arguments)
    file = Path(options.file).resolve()
    if not file.is_file():
        raise UserError("no such pipeline", where=options.file, mend="try pipelines/full.py")
    root, here = project_of(file), Path.cwd()
    source = (options.profile or root / "params.yaml").resolve()  # before the change of directory: named from where the user is
    os.chdir(root)
    refuse_another_profile("kfp run")
    overrides = [item for item in options.assignments if item.partition(".")[0] in (*STAGES, SECTION)]
    others = [item for item in options.assignments if item not in overrides]
    to_cluster = bool(options.endpoint) and not options.docker
    if to_cluster and options.first:
        raise UserError("only a run here can take artifacts as they lie", where=f"--from {options.first}",
                        mend="leave it out, or --endpoint and $KFP_ENDPOINT")
    text, changes = check_params(root, source, str(options.profile or "params.yaml"), overrides, stages_of(file, options.first),
                                 local=not to_cluster)
    os.environ[RUNNER_VARIABLE] = "cluster" if to_cluster else "local"  # a pipeline for this machine asks for no pods
    from stagecraft.cli.local import engine_for, run_local  # slow to import: a mistake is told of before
    from stagecraft.cli.submit import probe, refuse_paths, submit

    with contextlib.ExitStack() as held:
        if not to_cluster:
            check_checkout(root)
        if not to_cluster or options.profile or changes:
            held.enter_context(alone(root / ".work" / "run.lock", "kfp run", str(root)))
        with in_force(text):
            pipeline = load_pipeline(root, file)
            pipeline_arguments = parse_arguments(pipeline, others, None if to_cluster else here)
            engine = engine_for(pipeline, pipeline_arguments, root) if options.docker else None
        if to_cluster:
            refuse_paths(pipeline, pipeline_arguments)
            probe(options.endpoint, options.existing_token)
        if options.profile or changes:
            changes = write_params(root, options.profile, text, changes)
        for change in changes:
            print(f"params.yaml: {change}")
        if not to_cluster:
            return run_local(pipeline, pipeline_arguments, root, options.first, engine)
    return submit(pipeline, pipeline_arguments, options)


def project_of(file: Path) -> Path:
    """The nearest directory above the pipeline that has a dvc.yaml and a params.yaml."""
    for directory in file.parents:
        if (directory / "dvc.yaml").is_file() and (directory / "params.yaml").is_file():
            return directory
    raise UserError("no dvc.yaml and params.yaml in any directory above", where=str(file), mend="run a pipeline of a Stagecraft checkout")


def stages_of(file: Path, first: str | None) -> list[str]:
    """The stages that a pipeline takes the parameters of, from `first` on."""
    taken = re.findall(r"""section\(["'](\w+)["']\)""", file.read_text("utf-8", errors="replace"))
    names = list(STAGES)
    return [name for name in names[names.index(first) if first else 0:] if name in taken]


def check_params(root: Path, source: Path, shown: str, overrides: Sequence[str], stages: Sequence[str], *,
                 local: bool) -> tuple[str, list[str]]:
    """Check the profile `source` with its overrides, all of its sections.

    Args:
        shown: the name the profile goes by in messages.
        stages: those that will run.
        local: on this machine.

    Returns:
        the text that params.yaml is to have, and one line per override that changes something.

    Raises:
        UserError: the first mistake found.
    """
    text = read_text(source, shown)
    text, changes = override(text, overrides, shown) if overrides else (text, [])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "stagecraft.contract.preflight", f"--shown={shown}", *(["--local"] if local else []), *stages]
    checked = subprocess.run(command, input=text, text=True, env=environment, capture_output=True, cwd=root, check=False)
    if checked.returncode == EXIT_USER_ERROR:
        lines = [line for line in checked.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(lines[-1].removeprefix("error: ") if lines else checked.stderr.strip())
    if checked.returncode != 0:
        raise RuntimeError(f"the check of the parameters failed:\n{checked.stderr}")
    return text, changes


@contextlib.contextmanager
def in_force(text: str) -> Iterator[None]:
    """Have the body read this profile: what params.yaml will hold if nothing in the body speaks against it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = stream.name
        try:
            yield
        finally:
            os.environ.pop(VARIABLE)
            if before is not None:
                os.environ[VARIABLE] = before


def write_params(root: Path, profile: Path | None, text: str, changes: list[str]) -> list[str]:
    """Make `text` params.yaml; what a whole profile replaces is kept, and no earlier copy is written over.

    Returns:
        one line per change that was made.
    """
    params = root / "params.yaml"
    before = params.read_bytes()
    if text.encode() == before:
        return changes
    if profile:
        copies = (root / ".work" / f"params.before{f'-{number}' if number > 1 else ''}.yaml" for number in count(1))
        kept = next(copy for copy in copies if not copy.exists() or copy.read_bytes() == before)
        write_atomic(kept, before)
        changes = [f"now holds {profile} (the former is kept as {kept.relative_to(root)})", *changes]
    write_atomic(params, text)
    return changes


def load_pipeline(root: Path, file: Path) -> Any:
    """The one pipeline a file defines; its defaults are the parameters in force now."""
    from kfp.cli.compile_ import collect_pipeline_or_component_from_module

    os.environ["STAGECRAFT_ROOT"] = str(root)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    spec = importlib.util.spec_from_file_location(f"pipelines.{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"not valid Python: {error.msg}", where=f"{error.filename}:{error.lineno}", mend="mend the syntax") from None
    try:
        return collect_pipeline_or_component_from_module(module)
    except ValueError as error:
        raise UserError(str(error), where=str(file), mend="define one pipeline per file") from None


def parse_arguments(pipeline: Any, assignments: Sequence[str], here: Path | None) -> dict[str, str]:
    """`NAME=VALUE` for the pipeline's own parameters (those that are no stage's).

    Args:
        here: the directory that a path among them (`..._uri`, unless it is an address) is named from; None: it is the cluster's.
    """
    known = set(pipeline.component_spec.inputs or {}) - {f"{stage}_params" for stage in STAGES}  # those are checked as stage.key
    arguments = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in known:
            raise UserError("unknown parameter", where=assignment,
                            mend="write stage.key=value, as in pretrain.steps=100; params.yaml shows every key")
        arguments[name] = str(here / value) if here and name.endswith("_uri") and "://" not in value else value
    return arguments
