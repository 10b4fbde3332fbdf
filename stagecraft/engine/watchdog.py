"""Ends a rank whose step hangs, with a stack dump and the name of the rank that has gone silent.

Every rank writes a heartbeat file from a thread of its own: a rank that waits for another still does, a rank that is stopped, frozen
in the kernel or gone does not. So the ranks that wait can tell whom for.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from stagecraft.contract.errors import EXIT_USER_ERROR

EXIT_HANG = 75  # EX_TEMPFAIL of sysexits.h: start again
assert EXIT_HANG != EXIT_USER_ERROR


class Watchdog:
    """Watches this rank inside a `with` block.

    Args:
        directory: shared by the ranks, for `heartbeat-N` and, when a step hangs, `stack-N.txt`.
        seconds: from one `beat` to the next, at most; 0 turns it off. A time in which this process was itself stopped does not count.
    """

    def __init__(self, directory: Path, rank: int, seconds: float):
        self.directory, self.rank, self.seconds = directory, rank, seconds
        self._tick = min(5.0, max(0.2, seconds / 8))
        self._done = threading.Event()
        self._last = (0, time.monotonic())
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.seconds:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._alive()
            self.beat(0)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self, step: int) -> None:
        """`step` steps are done."""
        self._last = (step, time.monotonic())

    def _watch(self) -> None:
        slept = time.monotonic()
        while not self._done.wait(self._tick):
            now = time.monotonic()
            if now - slept > self.seconds / 2:  # we were stopped ourselves
                self.beat(self._last[0])
            slept = now
            self._alive()
            step, since = self._last
            if now - since > self.seconds:
                self._end(step, now - since)

    def _alive(self) -> None:
        (self.directory / f"heartbeat-{self.rank}").touch()

    def _end(self, step: int, waited: float) -> None:
        path = self.directory / f"stack-{self.rank}.txt"
        with path.open("w") as stream:
            faulthandler.dump_traceback(stream, all_threads=True)
        now = time.time()
        ages = {int(beat.name.rpartition("-")[2]): now - beat.stat().st_mtime for beat in self.directory.glob("heartbeat-*")}
        silent = [f"rank {rank} has been silent for {age:.0f} s" for rank, age in sorted(ages.items()) if age > self.seconds / 2]
        print(f"error: rank {self.rank} has waited {waited:.0f} s in step {step + 1}: {', '.join(silent) or 'all ranks are alive'}; "
              f"its stack is in {path} - start it again: it goes on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(EXIT_HANG)
