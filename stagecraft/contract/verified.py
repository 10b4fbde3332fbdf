"""Which files were found whole, so that the next start of a stage need not read them again: a corpus of terabytes takes hours."""

from __future__ import annotations

import json
import time
from pathlib import Path

from stagecraft.contract.files import write_json

_SECONDS = 30.0  # between the times at which it is kept, while files are read
_LATELY_NS = 2 * 10**9  # a file system's clock is coarse: what changed this lately may change once more and show the same time

Stamp = list[int]


class Verified:
    """Files and their SHA-256, known again by inode, size and times, as git's index knows them; a write changes a file's ctime.

    Args:
        path: where it is kept, as JSON; what cannot be read there counts as nothing known.
    """

    def __init__(self, path: Path):
        self._path, self._begun, self._kept = path, time.time_ns(), time.monotonic()
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list] = known if isinstance(known, dict) else {}

    def knows(self, file: Path, sha256: str) -> bool:
        """Whether the file, as it is now, was once found to have this SHA-256."""
        return self._known.get(str(file.absolute())) == [stamp_of(file), sha256]

    def learn(self, file: Path, stamp: Stamp, sha256: str) -> None:
        """The file has this SHA-256; `stamp` was taken before it was read. One that has changed since a moment ago is not remembered."""
        if self._begun - max(stamp[-2:]) > _LATELY_NS:
            self._known[str(file.absolute())] = [stamp, sha256]

    def keep(self) -> None:
        """`save`, if that was not done lately: a kill costs the reading of half a minute."""
        if time.monotonic() - self._kept > _SECONDS:
            self.save()

    def save(self) -> None:
        """Keep what is known of the files that are still there."""
        self._kept = time.monotonic()
        write_json(self._path, {name: known for name, known in self._known.items() if Path(name).is_file()})


def stamp_of(file: Path) -> Stamp:
    """Inode, size in bytes, and the times of the last change of content and of inode in nanoseconds."""
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
