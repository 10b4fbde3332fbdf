"""The body of every KFP task: have DVC bring the stage up to date, and point KFP's artifacts at what DVC keeps.

On a laptop (`kfp run` sets STAGECRAFT_RUNNER=local) all tasks share one working tree. In a pod each task has a clone of its own, as
nobody writes to an image's tree, on the volume $STAGECRAFT_SHARED where there is one: the lock entries of the stages before it arrive as
metadata of its input artifacts, DVC pulls what they name from the remote, and what this stage computed is pushed for the next.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, chdir
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from stagecraft.contract import manifest
from stagecraft.contract.clone import clone
from stagecraft.contract.cluster import TASK_VARIABLE, TRAINJOB_VARIABLE
from stagecraft.contract.errors import EXIT_USER_ERROR, UserError
from stagecraft.contract.events import VARIABLE, emit, events_file, read_events
from stagecraft.contract.params import PROFILE, params_path, parse, read_profile, read_text
from stagecraft.contract.profile import replace_section, with_section
from stagecraft.contract.registry import promote, read_promotion
from stagecraft.contract.repository import dvc, has_remote, locked_md5, merge_lock, read_lock
from stagecraft.contract.runner import WORK, finished
from stagecraft.contract.stages import PATHS, STAGES
from stagecraft.contract.tracking import DEFAULT_URI, PARENT_VARIABLE, log_cached, numbers, reached
from stagecraft.contract.work import work_key

ROOT_VARIABLE = "STAGECRAFT_ROOT"
RUNNER_VARIABLE = "STAGECRAFT_RUNNER"
FROM_VARIABLE = "STAGECRAFT_FROM"
REMOTE_VARIABLE = "STAGECRAFT_REMOTE"
SHARED_VARIABLE = "STAGECRAFT_SHARED"
_AGAIN = "what the stage made is kept: start the run again when MLflow is in order, or with MLFLOW_TRACKING_URI= (without MLflow)"


def section(stage: str) -> str:
    """A stage's section of the profile as JSON text: KFP would turn the integers of a dictionary into floats."""
    return json.dumps(read_profile(project_root() / params_path())[stage])


def project_root() -> Path:
    """The working tree: $STAGECRAFT_ROOT, else the tree this file lies in."""
    return Path(os.environ.get(ROOT_VARIABLE) or Path(__file__).parents[2])


def run_task(stage: str, params: str, *, inputs: Mapping[str, Any] | None = None, outputs: Mapping[str, Any] | None = None,
             metrics: Any = None, task_config: Any = None) -> None:
    """Bring `stage` up to date and fill in KFP's artifacts. Ends the process with exit code 2 on a user's mistake.

    Args:
        stage: its name.
        params: its section of the profile, JSON text.
        inputs: KFP input artifacts by the names of `PATHS`.
        outputs: KFP output artifacts by the names of `PATHS`.
        metrics: KFP metrics artifact that receives the stage's figures.
        task_config: KFP's TaskConfig, what the profile asks of a node where the stage runs on several.
    """
    if is_dataclass(task_config):
        os.environ[TASK_VARIABLE] = json.dumps(asdict(task_config))
    asked = json.loads(params)
    try:
        with _tree(stage, asked, inputs or {}):
            figures = _run(stage, asked, inputs or {})
            lock = read_lock()
            known = {name: lock[name] for name in list(STAGES)[: list(STAGES).index(stage) + 1] if name in lock}
            for name, artifact in (outputs or {}).items():
                artifact.metadata.update(dvc_path=PATHS[name].as_posix(), dvc_md5=locked_md5(PATHS[name]) or "",
                                         digest=manifest.read(PATHS[name])["digest"], dvc_lock=json.dumps(known))
                _hand_over(PATHS[name], artifact)
    except UserError as error:
        emit("error", message=str(error))
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    if metrics is not None:
        for key, value in numbers(figures).items():
            metrics.log_metric(key, value)


def _tree(stage: str, params: dict[str, Any], inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Where the task works: the project itself, or a clone that is found again by the same work: parameters, but for what one may change
    after a kill, and inputs."""
    root, shared = project_root(), os.environ.get(SHARED_VARIABLE)
    if os.environ.get(RUNNER_VARIABLE) == "local" or (not shared and os.access(root, os.W_OK)):
        return chdir(root)
    known = {name: artifact.metadata.get("digest") or artifact.uri for name, artifact in inputs.items()}
    place = Path(shared or tempfile.mkdtemp(prefix="stagecraft-"))
    asked = parse(importlib.import_module(f"components.{stage}.params").Params, params, stage)
    profile = with_section(read_text(root / PROFILE, PROFILE.name), stage, params)
    return clone(root, place, f"{stage}-{work_key(asked, known)[:16]}", profile)


def _run(stage: str, params: dict[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    local = os.environ.get(RUNNER_VARIABLE) == "local"
    if not local:
        _prepare_clone(stage, params)
    for name, artifact in inputs.items():
        _receive(name, artifact)
    emit("stage_start", stage=stage)
    ran = not _kept(stage) and _reproduce(stage)
    if not local and os.environ.get(REMOTE_VARIABLE) and dvc("push", "--run-cache") != 0:
        raise UserError("dvc push failed", where=os.environ[REMOTE_VARIABLE], mend="check the remote's address and credentials")
    figures = json.loads(STAGES[stage].metrics_path.read_text())
    if uri := os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_URI):
        if not ran:
            digests = {name: manifest.read(PATHS[name])["digest"] for name in STAGES[stage].inputs}
            if local:  # its conductor has MLflow in memory, which takes seconds to import
                emit("cached", stage=stage, params=params, inputs=digests, metrics=figures)
            else:
                with reached(uri, _AGAIN, patient=True) as client:
                    log_cached(client, stage, params, digests, figures)
        if stage == "evaluate":
            verdict, run = read_promotion(PATHS["evaluation"]), os.environ.get("MLFLOW_RUN_ID") or os.environ.get(PARENT_VARIABLE)
            with reached(uri, _AGAIN, patient=not local) as client:
                promote(client, verdict, run, lambda message: emit("note", message=message))
    emit("stage_end", stage=stage, cached=not ran)
    return figures


def _kept(stage: str) -> bool:
    """Whether the user asked to start at a later stage and take this one's artifacts as they lie."""
    first = os.environ.get(FROM_VARIABLE)
    if not first or list(STAGES).index(stage) >= list(STAGES).index(first):
        return False
    for name in STAGES[stage].outputs:
        manifest.read(PATHS[name])
    return True


def _reproduce(stage: str) -> bool:
    """Have DVC run the stage if it must; says whether it ran (False: unchanged, or restored from the cache or the remote)."""
    WORK.mkdir(exist_ok=True)
    if events_file() is None:
        os.environ[VARIABLE] = str((WORK / "events.jsonl").absolute())
        try:
            return _reproduce(stage)
        finally:
            del os.environ[VARIABLE]
    begun = WORK / f"{stage}.begun"  # and not yet recorded
    if begun.exists() and finished(stage):
        _record(stage)
    begun.touch()
    _, before = read_events(events_file())
    status = dvc("repro", *(["--pull"] if has_remote() else []), "--single-item", stage)
    events, _ = read_events(events_file(), before)
    if status != 0:
        if any(event["event"] == "error" for event in events):
            sys.exit(EXIT_USER_ERROR)  # the stage has said what is wrong
        sys.exit(f"dvc repro --single-item {stage} failed with status {status}")
    begun.unlink()
    return any(event["event"] == "open" for event in events)


def _record(stage: str) -> None:
    """Have DVC know what was made before it, or the task that followed, was killed: it would remove that and have it made again."""
    if TRAINJOB_VARIABLE in os.environ:
        from stagecraft.contract.trainjob import end_job  # Kubernetes' client, which nobody else needs

        end_job()
    print(f"{stage} was finished in an earlier attempt, which did not come to record it", flush=True)
    if (status := dvc("commit", "--force", stage)) != 0:
        sys.exit(f"dvc commit --force {stage} failed with status {status}")


def _prepare_clone(stage: str, params: dict[str, Any]) -> None:
    if remote := os.environ.get(REMOTE_VARIABLE):
        dvc("remote", "add", "--local", "--default", "--force", "storage", remote)
    replace_section(PROFILE, stage, params)


def _receive(name: str, artifact: Any) -> None:
    """Have an input artifact at its place: by its lock entries from the DVC remote, or copied from where it lies."""
    if lock := artifact.metadata.get("dvc_lock"):
        if os.environ.get(RUNNER_VARIABLE) != "local":
            merge_lock(json.loads(lock))
            if dvc("pull", PATHS[name].as_posix()) != 0:
                raise UserError("dvc pull failed", where=PATHS[name].as_posix(), mend=f"check the remote ${REMOTE_VARIABLE}")
        return
    source = Path(artifact.path) if artifact.uri.partition("://")[1] else Path(artifact.uri)
    if source.resolve() == PATHS[name].resolve():
        return
    manifest.verify(source)
    shutil.rmtree(PATHS[name], ignore_errors=True)
    shutil.copytree(source, PATHS[name])


def _hand_over(path: Path, artifact: Any) -> None:
    """Locally the artifact is the directory DVC keeps; in a pod KFP stores the manifest, and DVC's remote the bytes."""
    if os.environ.get(RUNNER_VARIABLE) == "local":
        artifact.uri = str(path.absolute())
        return
    target = Path(artifact.path)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(path / manifest.NAME, target / manifest.NAME)
