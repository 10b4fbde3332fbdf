"""A place that one process at a time works in."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from stagecraft.contract.errors import UserError


@contextmanager
def alone(path: Path, what: str, where: str) -> Iterator[None]:
    """Hold the file `path`; it goes with the process, however that ends.

    Args:
        what: is at work, as messages name it.
        where: it is.

    Raises:
        UserError: another process holds it, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            take(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise UserError(f"another {what} is at work here (process {stream.read().strip()})", where=where,
                            mend="wait for it, or interrupt it; the next one goes on from there") from None
        os.register_at_fork(after_in_child=stream.close)  # a child that outlives this process does not hold it
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def take(stream: TextIO, how: int) -> None:
    """`fcntl.flock` of a file that may lie on a shared file system.

    Raises:
        BlockingIOError: another process holds it.
        UserError: the file system has no locks.
    """
    try:
        fcntl.flock(stream, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise UserError(f"the file system has no locks ({error.strerror})", where=stream.name,
                        mend="mount it with them: option flock for Lustre, version 4 for NFS") from None
