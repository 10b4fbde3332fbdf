"""Run a pipeline on this machine: kfp.local conducts, DVC remembers, MLflow keeps the diary, the terminal stays readable."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console

from stagecraft.cli.diary import diary
from stagecraft.cli.summary import print_summary
from stagecraft.cli.watch import Watcher, follow
from stagecraft.contract.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR
from stagecraft.contract.events import VARIABLE as EVENTS_VARIABLE
from stagecraft.contract.kfp_task import FROM_VARIABLE, ROOT_VARIABLE, RUNNER_VARIABLE
from stagecraft.contract.params import read_profile
from stagecraft.contract.tracking import DEFAULT_URI

if TYPE_CHECKING:
    from stagecraft.cli.containers import Engine

_TAIL_LINES = 25
_GRACE_SECONDS = 20


def run_local(pipeline: Any, arguments: Mapping[str, str], root: Path, first: str | None, engine: Engine | None = None) -> int:
    """Run the pipeline with kfp.local; returns the exit status (0, 1 failure, 2 user's mistake, 130 interrupted).

    Args:
        pipeline: as KFP's decorator makes it.
        arguments: the pipeline's own parameters.
        root: the project.
        first: the stage to start at, if not the first one.
        engine: has every task run in a container of its stage's image (`engine_for`), not in a process beside this one.
    """
    console = Console(file=sys.stdout)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    log = root / ".work" / "logs" / f"{stamp}.log"
    events = log.with_suffix(".jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    _set_environment(root, events, first)
    where = "here in containers" if engine else "here"
    console.print(f"{pipeline.name}: running {where}; the full log is {log.relative_to(root)}", highlight=False)
    started = time.monotonic()
    with diary(pipeline.name, stamp) as told:
        watcher = follow(events, console, told.cached)
        status = _conduct(pipeline, arguments, root, log, engine)
        watcher.stop()
        told.status, told.stages = status, list(watcher.outcomes)
    _report(console, status, watcher, log.relative_to(root), time.monotonic() - started)
    return EXIT_USER_ERROR if status == 1 and watcher.error else status


def engine_for(pipeline: Any, arguments: Mapping[str, str], root: Path) -> Engine:
    """The container engine, which has the pipeline's images, and will give its tasks what lies outside the project and endpoints' keys.

    Raises:
        UserError: no engine answers, or an image is missing.
    """
    from stagecraft.cli.containers import Engine, images_of, key_variables, named_outside

    git = subprocess.run(["git", "rev-parse", "--path-format=absolute", "--git-common-dir"], capture_output=True, text=True, check=False)
    # DVC looks for the repository, which lies elsewhere if the project is a worktree.
    profile = read_profile()
    return Engine(root, images_of(pipeline), named_outside(root, [dict(arguments), profile, git.stdout.strip()]), key_variables(profile))


def _conduct(pipeline: Any, arguments: Mapping[str, str], root: Path, log: Path, engine: Engine | None) -> int:
    from kfp import local

    scratch = root / ".work" / "kfp"
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with open(log, "a", buffering=1) as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            warnings.simplefilter("ignore")
            runner = engine.runner() if engine else contextlib.nullcontext(local.SubprocessRunner(use_venv=False))
            try:
                with runner as how:
                    local.init(how, pipeline_root=str(scratch))
                    pipeline(**arguments)
            except KeyboardInterrupt:
                _end_children()
                return EXIT_INTERRUPTED
            except RuntimeError as error:  # what kfp.local raises when a task fails
                print(error)
                return 1
            return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        shutil.rmtree(scratch, ignore_errors=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end_children() -> None:
    """A terminal's Ctrl-C has reached the stage too; give it time to save, unless that comes again; then end what this process started."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGINT)
    alive = children
    with contextlib.suppress(KeyboardInterrupt):
        _, alive = psutil.wait_procs(children, timeout=_GRACE_SECONDS)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _set_environment(root: Path, events: Path, first: str | None) -> None:
    os.environ.update({
        ROOT_VARIABLE: str(root), RUNNER_VARIABLE: "local", EVENTS_VARIABLE: str(events),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
    })
    os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ.setdefault("MLFLOW_TRACKING_URI", DEFAULT_URI)  # from the project: an address cannot hold every path
    if first:
        os.environ[FROM_VARIABLE] = first


def _tail(log: Path) -> list[str]:
    """The last lines of the log with something in them, colours removed."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))
    return [line for line in text.splitlines() if line.strip(" -")][-_TAIL_LINES:]


def _report(console: Console, status: int, watcher: Watcher, log: Path, seconds: float) -> None:
    if status == 0:
        print_summary(console, watcher.outcomes, seconds)
        return
    finished = f"finished stages stay finished ({', '.join(watcher.outcomes) or 'none yet'}); the same command goes on from here"
    if status == EXIT_INTERRUPTED:
        console.print(f"interrupted in {watcher.stage or 'the beginning'}; {finished}", highlight=False)
    elif watcher.error:
        console.print(finished, highlight=False)
        print(f"error: {watcher.error}", file=sys.stderr, flush=True)
    else:
        console.print(f"{watcher.stage or 'the pipeline'} failed; the end of {log}:", highlight=False)
        for line in _tail(log):
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
        console.print(finished, highlight=False)
