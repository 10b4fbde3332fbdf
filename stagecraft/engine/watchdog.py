"""Ends a rank whose step hangs, with a stack dump, its last collectives and the name of the rank that is waited for.

Every rank writes a heartbeat file from a thread of its own, with the step it is in and the line that its main thread is at. A rank that
waits for another still does, a rank that is stopped, frozen in the kernel or gone does not; one that is in an endless loop is at another
line, or in an earlier step, than those that wait. So they can tell whom for.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from traceback import walk_stack
from types import FrameType, TracebackType

import torch.distributed as dist
from torch._C import _distributed_c10d

EXIT_HANG = 75  # EX_TEMPFAIL of sysexits.h: start again
_GROUPS = 4  # of ranks that are at the same line: so many are told of
_RECORDER = 10.0  # seconds that the flight recorder has
_OURS = str(Path(__file__).parents[2])  # where components and stagecraft lie


def group_timeout(seconds: float) -> timedelta:
    """How long the process group's ranks wait for each other where a watchdog of so many seconds ends one that waits, and names whom for:
    longer than that."""
    return timedelta(seconds=2 * seconds) if seconds else timedelta(days=365)


def of_this_rank(work: Path, seconds: float) -> Watchdog:
    """A watchdog of this rank of the process group, beside the others in the work directory's `ranks`."""
    return Watchdog(work / "ranks", dist.get_rank(), dist.get_world_size(), seconds)


@dataclass(frozen=True)
class _Beat:
    """What a rank last said: seconds ago, steps done, and the line of its main thread."""

    age: float
    step: int
    place: str


class Watchdog:
    """Watches this rank inside a `with` block.

    Args:
        directory: shared by the ranks, for `heartbeat-N` and, when a step hangs, `stack-N.txt` and what PyTorch's flight recorder has
            of collectives, `collectives_N`.
        ranks: how many there are; what an earlier attempt with more of them left is none of ours.
        seconds: from one `beat` to the next, at most; 0 turns it off. A time in which this process was itself stopped does not count.
    """

    def __init__(self, directory: Path, rank: int, ranks: int, seconds: float):
        self.directory, self.rank, self.ranks, self.seconds = directory, rank, ranks, seconds
        self._collectives = directory / f"collectives_{rank}"
        self._tick = min(5.0, max(0.2, seconds / 8))
        self._done = threading.Event()
        self._last = (0, time.monotonic())
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self.seconds:
            self.directory.mkdir(parents=True, exist_ok=True)
            for path in self.directory.glob("heartbeat-*"):
                if int(path.name.rpartition("-")[2]) >= self.ranks:
                    path.unlink(missing_ok=True)
            self.beat(0)
            self._alive()
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
        place = _place(sys._current_frames()[threading.main_thread().ident])
        path = self.directory / f"heartbeat-{self.rank}"
        temporary = self.directory / f".{path.name}"
        with suppress(OSError):  # as on a full disk: this rank then looks silent, but goes on watching
            temporary.write_text(json.dumps([self._last[0], place]))
            temporary.replace(path)

    def _end(self, step: int, waited: float) -> None:
        waited_for = self._waited_for()
        path = self.directory / f"stack-{self.rank}.txt"
        self._collectives.unlink(missing_ok=True)
        with suppress(OSError), path.open("w") as stream:
            frames = (frame for frame, _ in walk_stack(sys._current_frames()[threading.main_thread().ident]))
            stream.write("Main thread (most recent call first):\n" + "".join(
                f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}\n' for frame in frames) + "\n")
            stream.flush()
            faulthandler.dump_traceback(stream, all_threads=True)  # a hundred at most, the main thread last
        recorder = threading.Thread(target=self._write_collectives, daemon=True)  # which may itself wait for a GPU that hangs
        recorder.start()
        recorder.join(_RECORDER)
        beside = f", its last collectives are in {self._collectives.name}" if self._collectives.exists() else ""
        print(f"error: rank {self.rank} has waited {waited:.0f} s in step {step + 1}: {waited_for}; "
              f"its stack is in {path}{beside} - start it again: it goes on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(EXIT_HANG)

    def _write_collectives(self) -> None:
        if dist.is_initialized():
            dump = getattr(_distributed_c10d, "_dump_nccl_trace", None) or _distributed_c10d._dump_fr_trace
            with suppress(OSError):
                self._collectives.write_bytes(dump(includeStackTraces=False))
                # Where each was begun; for it PyTorch imports TorchInductor, which takes long beside a busy main thread.
                traced = self._collectives.with_name(f".{self._collectives.name}")
                traced.write_bytes(dump())
                traced.replace(self._collectives)

    def _waited_for(self) -> str:
        beats = self._beats()
        if silent := [f"rank {rank} has been silent for {beat.age:.0f} s" for rank, beat in beats.items() if beat.age > self.seconds / 2]:
            return ", ".join(silent)
        last = max((beat.step for beat in beats.values()), default=0)
        if behind := {rank: beat for rank, beat in beats.items() if beat.step < last}:
            return ", ".join(f"rank {rank} is behind, in step {beat.step + 1} at {beat.place}" for rank, beat in behind.items())
        at: dict[str, list[int]] = {}
        for rank, beat in beats.items():
            at.setdefault(beat.place, []).append(rank)
        fewest = sorted(at.items(), key=lambda item: len(item[1]))[:_GROUPS]
        return "all ranks are alive and in this step, " + ", ".join(
            f"rank {ranks[0]}{f' and {len(ranks) - 1} more' if len(ranks) > 1 else ''} at {place}" for place, ranks in fewest)

    def _beats(self) -> dict[int, _Beat]:
        now, found = time.time(), {}
        for path in self.directory.glob("heartbeat-*"):
            with suppress(OSError, ValueError):
                step, place = json.loads(path.read_text())
                found[int(path.name.rpartition("-")[2])] = _Beat(now - path.stat().st_mtime, step, place)
        return dict(sorted(found.items()))


def _place(frame: FrameType) -> str:
    """The line that a thread is at and, if that is a library's, the one of ours that called it."""
    last, ours = _line(frame), frame
    while not ours.f_code.co_filename.startswith((f"{_OURS}/components/", f"{_OURS}/stagecraft/")):
        if (ours := ours.f_back) is None:
            return last
    return last if ours is frame else f"{last}, called from {_line(ours)}"


def _line(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
