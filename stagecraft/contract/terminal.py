"""Progress for people: a live bar on a terminal, an occasional plain line everywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from stagecraft.contract.runlog import Sink
from stagecraft.contract.stages import STAGES

_LINE_SECONDS = 5.0
_LATELY_SECONDS = 30.0


def stage_head(stage: str) -> str:
    """`stage 3 of 7: sft`."""
    return f"stage {list(STAGES).index(stage) + 1} of {len(STAGES)}: {stage}"


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def terminal_sink(head: str, console: Console | None = None) -> Sink:
    """The sink that fits a console: a live bar on a terminal, plain lines otherwise.

    Without a console it draws on stderr, and what the process prints meanwhile scrolls by above the bar.
    """
    own = console is None
    console = console or Console(file=sys.stderr)
    return LiveSink(head, console, own) if console.is_terminal else PlainSink(head, console.file)


class _Rate:
    """Units a second of late, and the time left at that rate.

    Once there are two advances what came before the first is left out: an engine was loaded then, or code compiled.
    """

    def __init__(self, total: int, done: int):
        self._total, self._marks, self._begun = total, deque([(time.monotonic(), done)]), False

    def reach(self, done: int) -> None:
        now = time.monotonic()
        self._marks.append((now, done))
        if not self._begun and len(self._marks) > 2:
            self._marks.popleft()
            self._begun = True
        while now - self._marks[1][0] > _LATELY_SECONDS:
            self._marks.popleft()

    def per_second(self) -> float:
        (since, before), (now, done) = self._marks[0], self._marks[-1]
        return (done - before) / max(now - since, 1e-3)

    def left(self) -> float | None:
        rate = self.per_second()
        return (self._total - self._marks[-1][1]) / rate if rate > 0 else None


def _shown(fields: dict[str, float]) -> str:
    return "  ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in fields.items())


class PlainSink(Sink):
    """Plain lines: one every few seconds of a bar, and its last state."""

    def __init__(self, head: str, stream: TextIO | None = None):
        self._head, self._stream = head, stream or sys.stderr

    def bar_start(self, description: str, total: int, unit: str, done: int) -> None:
        self._bar, self._total, self._unit, self._rate = description, total, unit, _Rate(total, done)
        self._last, self._pending = time.monotonic(), None

    def bar_advance(self, done: int, fields: dict[str, float]) -> None:
        self._pending = (done, fields)
        self._rate.reach(done)
        if time.monotonic() - self._last >= _LINE_SECONDS:
            self._flush()

    def bar_end(self) -> None:
        self._flush()

    def note(self, message: str) -> None:
        self._print(message)

    def _flush(self) -> None:
        if self._pending is None:
            return
        done, fields = self._pending
        left = self._rate.left()
        parts = [f"{self._bar} {done}/{self._total} {self._unit}", _shown(fields), f"{self._rate.per_second():.3g} {self._unit}/s"]
        if left is not None and done < self._total:
            parts.append(f"{duration(left)} left")
        self._print("  ".join(part for part in parts if part))
        self._last, self._pending = time.monotonic(), None

    def _print(self, text: str) -> None:
        self._stream.write(f"{self._head} | {text}\n")
        self._stream.flush()


class LiveSink(Sink):
    """A bar that moves: description, count, the stage's own figures, rate and time left. Notes scroll by above it."""

    def __init__(self, head: str, console: Console, redirect: bool):
        self._head, self._console, self._redirect = head, console, redirect
        self._progress: Progress | None = None

    def bar_start(self, description: str, total: int, unit: str, done: int) -> None:
        self.bar_end()
        self._rate, self._unit = _Rate(total, done), unit
        self._progress = Progress(
            TextColumn("[bold]{task.fields[head]}[/]  {task.description}"), BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"), TextColumn("[cyan]{task.fields[shown]}[/]"),
            TextColumn("{task.fields[rate]}", style="dim"), TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=self._console, transient=True, refresh_per_second=4,
            redirect_stdout=self._redirect, redirect_stderr=self._redirect)
        self._task = self._progress.add_task(escape(description), total=total, completed=done, head=self._head, shown="", rate="")
        self._progress.start()

    def bar_advance(self, done: int, fields: dict[str, float]) -> None:
        if self._progress:
            self._rate.reach(done)
            rate = f"{self._rate.per_second():.3g} {self._unit}/s"
            self._progress.update(self._task, completed=done, shown=escape(_shown(fields)), rate=rate)

    def bar_end(self) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def note(self, message: str) -> None:
        self._console.print(f"[dim]{escape(self._head)} | {escape(message)}[/]", highlight=False)

    def close(self, status: str, metrics: dict[str, Any]) -> None:
        self.bar_end()
