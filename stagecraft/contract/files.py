"""Writes that a kill cannot leave half done, and digests of what was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `data` under a temporary name, fsync it and rename it to `path` (POSIX rename is atomic)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """An empty directory to write into, renamed to `path` once the block is through and its files are on disk; what stood there goes then.

    A block that fails or is killed leaves `path` as it was. A kill just after it may leave none, between two renames, but never a part.
    One process at a time may write it: what an earlier one left unfinished goes.
    """
    temporary, former = (path.with_name(f".{path.name}.{kind}") for kind in ("tmp", "old"))
    for left in (temporary, former):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for file in (each for each in temporary.rglob("*") if each.is_file()):
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    with suppress(FileNotFoundError):
        path.rename(former)
    temporary.rename(path)
    shutil.rmtree(former, ignore_errors=True)


def link_or_copy(source: str, target: str) -> None:
    """Have a finished file under another name too: by a hard link, or where that cannot be (another volume), as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_each(paths: Sequence[Path]) -> Iterator[str]:
    """Hex SHA-256 of each file's bytes, in order. As many are read at once as there are cores: hashing releases Python's lock."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(sha256, paths)


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
