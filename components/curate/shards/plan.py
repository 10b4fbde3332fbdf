"""Which file belongs to which shard, and the key under which a shard's result is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from components.curate.document import identify
from components.curate.reading.listing import File
from stagecraft.contract.files import digest_of, write_atomic


@dataclass(frozen=True)
class Shard:
    """A set of files that one task works through.

    Args:
        key: hex digest of everything the result depends on: the files with their sizes and stamps, the rules, the code.
        files: ordered by source and name.
    """

    key: str
    files: tuple[File, ...]


def draw_sample(files: Sequence[File], sample_bytes: int) -> list[File]:
    """The files whose names hash lowest, until they fill `sample_bytes` bytes on disk; in the order of `files`.

    Any sample is an unbiased one, and a larger sample holds every smaller one.
    """
    chosen, taken = set(), 0
    for file in sorted(files, key=lambda file: identify(file.source, file.name)):
        if taken >= sample_bytes:
            break
        chosen.add((file.source, file.name))
        taken += file.size
    return [file for file in files if (file.source, file.name) in chosen]


def plan_shards(files: Sequence[File], count: int, basis: str) -> list[Shard]:
    """Spread files over at most `count` shards by a hash of their names; empty shards are left out.

    A file's shard depends on its own name alone: a file added, changed or removed touches the key of one shard.

    Args:
        basis: hex digest of what all shards depend on besides their files.
    """
    members: list[list[File]] = [[] for _ in range(count)]
    for file in files:
        members[int(identify(file.source, file.name), 16) % count].append(file)
    return [Shard(digest_of([basis, [[f.source, f.name, f.path, f.size, f.stamp] for f in shard]])[:24], tuple(shard))
            for shard in members if shard]


def write_plan(directory: Path, shard: Shard) -> None:
    """Write a shard's list of files where the task that works on it finds it."""
    write_atomic(_plan_path(directory, shard.key), json.dumps([asdict(file) for file in shard.files]))


def read_plan(directory: Path, key: str) -> list[File]:
    """The files of a shard."""
    return [File(**fields) for fields in json.loads(_plan_path(directory, key).read_text())]


def _plan_path(directory: Path, key: str) -> Path:
    return directory / "plans" / f"{key}.json"
