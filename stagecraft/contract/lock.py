"""A place that one process at a time works in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stagecraft.contract.errors import UserError


@contextmanager
def alone(path: Path, what: str, where: str) -> Iterator[None]:
    """Hold the file `path`; it goes with the process, however that ends.

    Args:
        what: is at work, as messages name it.
        where: it is.

    Raises:
        UserError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise UserError(f"another {what} is at work here (process {stream.read().strip()})", where=where,
                            mend="wait for it, or interrupt it; the next one goes on from there") from None
        os.register_at_fork(after_in_child=stream.close)  # a child that outlives this process does not hold it
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield
