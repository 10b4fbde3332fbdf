"""`kfp run FILE.py`: check every parameter, then run the pipeline here, in containers or without, or submit it to a cluster."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stagecraft.contract.cluster import SECTION
from stagecraft.contract.errors import EXIT_USER_ERROR, UserError
from stagecraft.contract.files import write_atomic
from stagecraft.contract.kfp_task import RUNNER_VARIABLE
from stagecraft.contract.params import refuse_another_profile
from stagecraft.contract.profile import override
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
    made.add_argument("--profile", type=Path, metavar="FILE", help="make this whole profile params.yaml before anything else")
    made.add_argument("--from", dest="first", metavar="STAGE", choices=list(STAGES),
                      help="start at STAGE and take the artifacts of the stages before it as they lie")
    made.add_argument("--docker", action="store_true",
                      help="run here, each task in a container of its stage's image (Docker, or podman's service at $DOCKER_HOST)")
    made.add_argument("--endpoint", default=os.environ.get("KFP_ENDPOINT"), metavar="URL",
                      help="submit to this Kubeflow Pipelines API server (default: $KFP_ENDPOINT; unset: run here)")
    made.add_argument("-n", "--namespace", default=os.environ.get("KFP_NAMESPACE"), help="namespace on the cluster ($KFP_NAMESPACE)")
    made.add_argument("--existing-token", default=os.environ.get("KFP_EXISTING_TOKEN"), metavar="TOKEN",
                      help="bearer token for the API server ($KFP_EXISTING_TOKEN)")
    made.add_argument("--experiment", default="stagecraft", help="experiment on the cluster (default: stagecraft)")
    made.add_argument("--watch", action="store_true", help="wait for the submitted run to end")
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit status.

    Raises:
        UserError: a file, parameter or address is wrong.
    """
    options = parser().parse_intermixed_args(arguments)
    file = Path(options.file).resolve()
    if not file.is_file():
        raise UserError("no such pipeline", where=options.file, mend="try pipelines/full.py")
    root = project_of(file)
    os.chdir(root)
    refuse_another_profile("kfp run")
    overrides = [item for item in options.assignments if item.partition(".")[0] in (*STAGES, SECTION)]
    others = [item for item in options.assignments if item not in overrides]
    changes = prepare_params(root, options.profile, overrides)
    for change in changes:
        print(f"params.yaml: {change}")
    os.environ[RUNNER_VARIABLE] = "cluster" if options.endpoint else "local"  # a pipeline for this machine asks for no pods
    pipeline = load_pipeline(root, file)
    pipeline_arguments = parse_arguments(pipeline, others)
    if options.endpoint and not options.docker:
        from stagecraft.cli.submit import submit

        return submit(pipeline, pipeline_arguments, options)
    from stagecraft.cli.local import run_local

    return run_local(pipeline, pipeline_arguments, root, options.first, in_containers=options.docker)


def project_of(file: Path) -> Path:
    """The nearest directory above the pipeline that has a dvc.yaml and a params.yaml."""
    for directory in file.parents:
        if (directory / "dvc.yaml").is_file() and (directory / "params.yaml").is_file():
            return directory
    raise UserError("no dvc.yaml and params.yaml in any directory above", where=str(file), mend="run a pipeline of a Stagecraft checkout")


def prepare_params(root: Path, profile: Path | None, overrides: Sequence[str]) -> list[str]:
    """Check the profile with its overrides, all of its sections, and only then make it params.yaml.

    Returns:
        one line per change that was made to params.yaml.
    """
    params = root / "params.yaml"
    source = profile or params
    try:
        text = source.read_text()
    except OSError as error:
        raise UserError(f"cannot read parameters: {error.strerror}", where=str(source), mend="give an existing profile") from None
    before = params.read_text()
    text, changes = override(text, overrides) if overrides else (text, [])
    environment = {**os.environ, "STAGECRAFT_SHOWN": str(profile or "params.yaml"),
                   "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    checked = subprocess.run([sys.executable, "-m", "stagecraft.contract.preflight"], input=text, text=True, env=environment,
                             capture_output=True, cwd=root, check=False)
    if checked.returncode == EXIT_USER_ERROR:
        lines = [line for line in checked.stderr.splitlines() if line.startswith("error: ")]
        raise UserError(lines[-1].removeprefix("error: ") if lines else checked.stderr.strip())
    if checked.returncode != 0:
        raise RuntimeError(f"the check of the parameters failed:\n{checked.stderr}")
    if profile and text != before:
        kept = root / ".work" / "params.before.yaml"
        write_atomic(kept, before)
        changes = [f"now holds {profile} (the former is kept as {kept.relative_to(root)})", *changes]
    if text != before:
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
    spec.loader.exec_module(module)
    try:
        return collect_pipeline_or_component_from_module(module)
    except ValueError as error:
        raise UserError(str(error), where=str(file), mend="define one pipeline per file") from None


def parse_arguments(pipeline: Any, assignments: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` for the pipeline's own parameters (those that are no stage's)."""
    known = set(pipeline.component_spec.inputs or {})
    arguments = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in known:
            raise UserError("unknown parameter", where=assignment,
                            mend="write stage.key=value, as in pretrain.steps=100; params.yaml shows every key")
        arguments[name] = value
    return arguments
