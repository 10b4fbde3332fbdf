"""A task's own clone, on the volume that tasks and ranks share: it outlives the pod, and another pod goes on where one was lost."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_atomic
from stagecraft.contract.lock import take
from stagecraft.contract.params import PROFILE

# What DVC needs to know a stage, and Python to run it.
_PARTS = ("dvc.yaml", ".dvcignore", ".dvc/config", "components", "stagecraft")
_LOCAL = "[core]\n    no_scm = true\n"  # a clone is no git checkout


@contextmanager
def clone(source: Path, shared: Path, name: str, profile: str) -> Iterator[Path]:
    """The clone `shared/name` as the current directory, with the code of `source` and `profile` as its params.yaml.

    What else is in it (inputs, checkpoints, DVC's cache) stays until the body is left without an error; then all of it goes. Two tasks
    with the same work take turns: the second finds what the first has pushed.

    Raises:
        UserError: the volume cannot be written, or has no locks.
    """
    directory = shared / name
    with _lock_file(shared, name) as lock:
        _wait_for(lock, name)
        _lay_out(source, directory, profile)
        before = Path.cwd()
        os.chdir(directory)
        try:
            yield directory
        finally:
            os.chdir(before)
        shutil.rmtree(directory, ignore_errors=True)


def _lock_file(shared: Path, name: str) -> TextIO:
    try:
        (shared / ".locks").mkdir(parents=True, exist_ok=True)
        return open(shared / ".locks" / name, "w")
    except OSError as error:
        raise UserError(f"cannot write there ({error.strerror})", where=str(shared),
                        mend=f"make the volume writable for user {os.getuid()}, as whom tasks run") from None


def _wait_for(lock: TextIO, name: str) -> None:
    try:
        take(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{name} is at work in another pod; waiting for it", flush=True)
        take(lock, fcntl.LOCK_EX)


def _lay_out(source: Path, directory: Path, profile: str) -> None:
    """Ranks that a lost task has left running may be starting here: what they would read the same is not touched."""
    shutil.rmtree(directory / ".dvc" / "tmp", ignore_errors=True)  # locks by process id, of a pod that is gone
    for part in _PARTS:
        if (source / part).is_dir():
            _mirror(source / part, directory / part)
        elif (source / part).exists():
            _copy(source / part, directory / part)
    if not (directory / PROFILE).is_file() or (directory / PROFILE).read_bytes() != profile.encode():
        write_atomic(directory / PROFILE, profile)
    (directory / ".dvc" / "config.local").write_text(_LOCAL)


def _mirror(source: Path, target: Path) -> None:
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    known = {target / each for file in files for each in (file, *file.parents)}
    for gone in sorted(set(target.rglob("*")) - known, reverse=True):  # what is in a directory before itself
        with suppress(OSError):
            gone.rmdir() if gone.is_dir() and not gone.is_symlink() else gone.unlink()
    for file in files:
        _copy(source / file, target / file)


def _copy(source: Path, target: Path) -> None:
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    shutil.copy2(source, beside)
    beside.replace(target)
