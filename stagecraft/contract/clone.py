"""A task's own clone, on the volume that tasks and ranks share: it outlives the pod, and another pod goes on where one was lost."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What DVC needs to know a stage, and Python to run it.
_PARTS = ("dvc.yaml", "params.yaml", ".dvcignore", ".dvc/config", "components", "stagecraft")
_LOCAL = "[core]\n    no_scm = true\n"  # a clone is no git checkout


@contextmanager
def clone(source: Path, shared: Path, name: str) -> Iterator[Path]:
    """The clone `shared/name` as the current directory, with the code of `source`.

    What else is in it (inputs, checkpoints, DVC's cache) stays until the body is left without an error; then all of it goes. Two tasks
    with the same work take turns: the second finds what the first has pushed.
    """
    directory = shared / name
    (shared / ".locks").mkdir(parents=True, exist_ok=True)
    with open(shared / ".locks" / name, "w") as lock:
        _wait_for(lock.fileno(), name)
        _lay_out(source, directory)
        before = Path.cwd()
        os.chdir(directory)
        try:
            yield directory
        finally:
            os.chdir(before)
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for(lock: int, name: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{name} is at work in another pod; waiting for it", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _lay_out(source: Path, directory: Path) -> None:
    shutil.rmtree(directory / ".dvc" / "tmp", ignore_errors=True)  # locks by process id, of a pod that is gone
    for part in _PARTS:
        target = directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        elif (source / part).exists():
            shutil.copy(source / part, target)
    (directory / ".dvc" / "config.local").write_text(_LOCAL)
