"""Run one stage, whoever asks: `python -m components.<stage>` is this function and nothing else."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stagecraft.contract import manifest
from stagecraft.contract.cluster import TRAINJOB_VARIABLE
from stagecraft.contract.code import code_digest
from stagecraft.contract.environment import describe_environment
from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.events import emit
from stagecraft.contract.files import digest_of, write_json
from stagecraft.contract.lock import alone
from stagecraft.contract.params import PROFILE, load, params_path, parse, refuse_another_profile
from stagecraft.contract.repository import STAGE_VARIABLE
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.sinks import open_sinks
from stagecraft.contract.stages import PATHS, STAGES, Stage
from stagecraft.contract.starting import others_wait, wait_for_first
from stagecraft.contract.verified import Verified
from stagecraft.contract.work import work_key

WORK = Path(".work")
_LONG_BYTES = 2**34  # several seconds' reading


def run_stage(name: str) -> dict[str, Any]:
    """Run a stage in the current directory (the project root).

    Inputs are verified against their manifests first. `main` writes into temporary directories that are renamed into
    place, manifest last, once it has returned; so an artifact is there whole or not at all. `log.work` is kept between
    attempts with the same parameters (but for their placement), inputs and code, and removed on success, other work of the stage with it.

    Returns:
        the metrics written to metrics/<stage>.json, `seconds` among them.

    Raises:
        UserError: another process runs the stage here; or as `main`.
    """
    with alone(WORK / f"{name}.lock", f"{name} stage", str(WORK / name)):
        return _run(name)


def _run(name: str) -> dict[str, Any]:
    stage = STAGES[name]
    module = importlib.import_module(f"components.{name}.stage")
    params = load(module.Params, name)
    plain = asdict(params)
    inputs = {key: manifest.read(PATHS[key])["digest"] for key in stage.inputs}
    code = code_digest(name)
    work, other = _work_directory(stage, work_key(params, inputs, code))
    log = RunLog(name, stage.plots_path, work, open_sinks(stage, plain, inputs))
    if other and not any(work.iterdir()):
        log.note(f"begins anew: parameters, inputs or code are not those of {other}, which is kept until this is done")
    try:
        with others_wait(_begun(name)):
            _verify([PATHS[key] for key in stage.inputs], log)
        _empty(stage.plots_path)
        staged = {key: _empty(PATHS[key].with_name(f".{PATHS[key].name}.tmp")) for key in stage.outputs}
        started = time.monotonic()
        metrics = module.main(params, {key: PATHS[key] for key in stage.inputs}, staged, log)
        metrics = {**metrics, "seconds": round(time.monotonic() - started, 2)}
        environment = {**describe_environment(), **log.environment}
        for key, directory in staged.items():
            manifest.write(directory, stage=name, params=plain, inputs=inputs, code=code, environment=environment, metrics=metrics)
            _replace(directory, PATHS[key])
        write_json(stage.metrics_path, metrics)
    except BaseException as error:
        log.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", {})
        raise
    log.close("FINISHED", metrics)
    for done in (work, *_others(work)):
        shutil.rmtree(done, ignore_errors=True)
    return metrics


def finished(name: str) -> bool:
    """Whether all that the stage would make of params.yaml lies in the current directory, whole.

    By parameters, inputs and code it is what a start anew would have gone on with, and no work in progress is left: that goes last.
    """
    stage = STAGES[name]
    kind = importlib.import_module(f"components.{name}.params").Params
    try:
        key = work_key(load(kind, name, PROFILE), {key: manifest.read(PATHS[key])["digest"] for key in stage.inputs}, code_digest(name))
        metrics = digest_of(json.loads(stage.metrics_path.read_text()))
        for made in (manifest.read(PATHS[key]) for key in stage.outputs):
            if (work_key(parse(kind, made["params"], name), made["inputs"], made["code"]), digest_of(made["metrics"])) != (key, metrics):
                return False
        if _work_path(stage, key).exists() or not stage.plots_path.is_dir():
            return False
        for output in stage.outputs:
            manifest.verify(PATHS[output])
    except (UserError, OSError, ValueError, KeyError):
        return False
    return True


def _verify(artifacts: Sequence[Path], log: RunLog) -> None:
    """Read what is not known to be whole since an earlier start; a bar shows for what takes longer than a moment."""
    verified = Verified(log.cache / "verified.json")
    files = [file for path in artifacts for file in manifest.read(path)["files"].values()]
    long = sum(file["size"] for file in files) > _LONG_BYTES
    with log.bar("verifying the inputs", len(files), unit="file") if long else nullcontext() as bar:
        for path in artifacts:
            manifest.verify(path, verified, bar.advance if bar else lambda: None)


def follow_stage(name: str) -> None:
    """What a rank other than the first does under torchrun: the stage's worker, beside rank 0's `run_stage`.

    All ranks see the same tree, on whatever nodes they are; rank 0 alone verifies the inputs, logs and writes the outputs.

    Raises:
        UserError: the stage knows no other ranks.
    """
    stage = STAGES[name]
    worker = f"components.{name}.worker"
    if importlib.util.find_spec(worker) is None:
        raise UserError(f"{name} runs as one process", where="torchrun", mend=f"start it as python -m components.{name}")
    params = load(importlib.import_module(f"components.{name}.stage").Params, name)
    inputs = {key: manifest.read(PATHS[key])["digest"] for key in stage.inputs}
    work = _work_path(stage, work_key(params, inputs, code_digest(name)))
    wait_for_first(_begun(name))
    sys.argv = [worker, str(work), *(str(PATHS[key]) for key in stage.inputs)]
    runpy.run_module(worker, run_name="__main__")


def cli(name: str, argv: Sequence[str] | None = None, epilog: str = "") -> None:
    """The command line of a stage; `epilog` ends its help."""
    stage = STAGES[name]
    parser = argparse.ArgumentParser(
        prog=f"python -m components.{name}", epilog=epilog,
        description=f"Run the {name} stage: reads {', '.join(map(str, (PATHS[k] for k in stage.inputs))) or 'params.yaml'}; "
                    f"writes {', '.join(str(PATHS[k]) for k in stage.outputs)} and {stage.metrics_path}. "
                    f"Parameters come from section `{name}` of {params_path()} ($STAGECRAFT_PARAMS names another profile).")
    parser.parse_args(argv)
    exit_on_user_error(lambda: _run_and_tell(name), interrupted="interrupted; the same command goes on from the last checkpoint")


def _run_and_tell(name: str) -> None:
    try:
        if STAGE_VARIABLE in os.environ:
            refuse_another_profile("DVC")
        if "RANK" not in os.environ and TRAINJOB_VARIABLE in os.environ:
            from stagecraft.contract.trainjob import run_on_nodes  # Kubernetes' client, which nobody else needs

            run_on_nodes(name)
        elif os.environ.get("RANK", "0") != "0":
            follow_stage(name)
        else:
            run_stage(name)
    except UserError as error:
        emit("error", message=str(error))
        raise


def _work_directory(stage: Stage, key: str) -> tuple[Path, Path | None]:
    """`.work/<stage>/<key>`, and the newest work of another key (other parameters, inputs or code) if there is any.

    That one stays: who goes back to what it was made with goes on there. Disks being finite, the rest goes.
    """
    work = _work_path(stage, key)
    others = _others(work)
    kept = next((other for other in others[:1] if any(other.iterdir())), None)
    for other in others:
        if other != kept:
            shutil.rmtree(other, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    os.utime(work)  # a directory's own time is otherwise that of the last name in it
    return work, kept


def _others(work: Path) -> list[Path]:
    """Work of the stage's other keys: what has a checkpoint first, then the newest. A start that failed at once leaves only newer ones."""
    others = [path for path in work.parent.glob("*") if path != work and path.is_dir()]
    return sorted(others, key=lambda path: (any(path.rglob("step-*")), any(path.iterdir()), path.stat().st_mtime), reverse=True)


def _begun(name: str) -> Path:
    """Where the first rank tells the others that the inputs are right."""
    return WORK / "cache" / name / "begun.json"


def _work_path(stage: Stage, key: str) -> Path:
    return WORK / stage.name / key[:16]


def _empty(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def _replace(staged: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
