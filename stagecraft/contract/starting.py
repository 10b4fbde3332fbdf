"""The ranks of a job begin when the first of them has read the inputs: of terabytes that takes longer than ranks wait for each other.

Process groups, which end a rank that waits too long, are not there yet: the first rank tells the others through a file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stagecraft.contract.files import write_json

_BEAT = 5.0  # seconds between the first rank's signs of life
_PATIENCE = 600.0  # seconds without one, after which the others no longer wait here


@contextmanager
def others_wait(path: Path) -> Iterator[None]:
    """On the first rank under torchrun: the others, who call `wait_for_first`, wait until the block is through.

    Args:
        path: a file that all ranks see.
    """
    if "RANK" not in os.environ:
        yield
        return
    through = Event()

    def beat() -> None:
        beats = 0
        while not through.wait(_BEAT):
            beats += 1
            write_json(path, {"attempt": _attempt(), "beats": beats})

    write_json(path, {"attempt": _attempt(), "beats": 0})
    thread = Thread(target=beat, name="others wait", daemon=True)
    thread.start()
    try:
        yield
    finally:
        through.set()
        thread.join()
    write_json(path, _through())


def wait_for_first(path: Path) -> None:
    """On another rank: return when the first is through, or seems to be gone."""
    said, heard, pause = None, time.monotonic(), 0.05
    while (now := _read(path)) != _through():
        if now != said:
            said, heard = now, time.monotonic()
        if time.monotonic() - heard > _PATIENCE:
            return
        time.sleep(pause)
        pause = min(2.0, 1.5 * pause)


def _through() -> dict[str, Any]:
    return {"attempt": _attempt(), "through": True}


def _attempt() -> str:
    """Where the ranks of this attempt meet: at a restart that is another port, unless whoever starts them names one; then they say which
    attempt it is (k8s/base/stagecraft/training/runtime.yaml does)."""
    return ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "STAGECRAFT_ATTEMPT"))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
