"""Draws a pipeline's progress from its event file, while KFP and DVC talk to the log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.status import Status

from stagecraft.contract.events import read_events, replay
from stagecraft.contract.runlog import Sink
from stagecraft.contract.terminal import duration, stage_head, terminal_sink

_POLL_SECONDS = 0.25

Cached = Callable[[str, dict[str, Any], dict[str, str], dict[str, Any]], None]


@dataclass
class Outcome:
    """How a stage ended: wall seconds, and whether DVC had it already."""

    seconds: float
    cached: bool


class Watcher(threading.Thread):
    """Follows an event file until stopped; `outcomes` and `error` hold what it learned."""

    def __init__(self, events: Path, console: Console, cached: Cached):
        super().__init__(name="watcher", daemon=True)
        self.outcomes: dict[str, Outcome] = {}
        self.error: str | None = None
        self.stage: str | None = None
        self._events, self._console, self._cached = events, console, cached
        self._offset, self._since = 0, 0.0
        self._sink: Sink | None = None
        self._waiting: Status | None = None
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.is_set():
            self._drain()
            self._ending.wait(_POLL_SECONDS)
        self._drain()
        self._stop_waiting()
        if self._sink:
            self._sink.close("FINISHED", {})

    def stop(self) -> None:
        """Read what is left and take the bar off the screen."""
        self._ending.set()
        self.join()

    def _drain(self) -> None:
        events, self._offset = read_events(self._events, self._offset)
        for event in events:
            self._handle(event)

    def _handle(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "stage_start":
                self.stage, self._since = event["stage"], event["time"]
                self._sink = terminal_sink(stage_head(self.stage), console=self._console)
                self._wait()
            case "cached":
                self._cached(event["stage"], event["params"], event["inputs"], event["metrics"])
            case "stage_end":
                outcome = Outcome(event["time"] - self._since, event["cached"])
                self.outcomes[event["stage"]] = outcome
                self._stop_waiting()
                self._sink.close("FINISHED", {})
                said = "unchanged, taken from the cache" if outcome.cached else f"done in {duration(outcome.seconds)}"
                self._console.print(f"{stage_head(event['stage'])} | {said}", highlight=False)
            case "error":
                self.error = event["message"]
            case _ if self._sink:
                if event["event"] == "bar_start":
                    self._stop_waiting()
                replay(event, self._sink)
                if event["event"] == "bar_end":
                    self._wait()

    def _wait(self) -> None:
        """Between bars (imports, hashing) a spinner shows that the stage is alive."""
        if self._console.is_terminal and self._waiting is None:
            self._waiting = self._console.status(stage_head(self.stage))
            self._waiting.start()

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting.stop()
            self._waiting = None


def follow(events: Path, console: Console, cached: Cached) -> Watcher:
    """Start watching; `cached` is called for every stage that had nothing to do, with its parameters, inputs' digests and metrics."""
    events.parent.mkdir(parents=True, exist_ok=True)
    watcher = Watcher(events, console, cached)
    watcher.start()
    return watcher
