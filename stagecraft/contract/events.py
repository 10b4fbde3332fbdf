"""The event file: what a stage says, as JSON lines, for whoever started it (`kfp run` draws the progress from it).

`$STAGECRAFT_EVENTS` names the file. One line is one event: {"event": kind, "time": seconds since the epoch, ...}.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from stagecraft.contract.runlog import Sink

VARIABLE = "STAGECRAFT_EVENTS"
_BAR_SECONDS = 0.2


def events_file() -> Path | None:
    """The event file in force, if any."""
    name = os.environ.get(VARIABLE)
    return Path(name) if name else None


def emit(kind: str, **fields: Any) -> None:
    """Append one event. Nothing happens where no event file is in force."""
    if path := events_file():
        line = json.dumps({"event": kind, "time": time.time(), **fields}, default=float) + "\n"
        with open(path, "a") as stream:  # one write in append mode: lines of several processes do not mix
            stream.write(line)


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines written since `offset` (in bytes), and where the next call goes on."""
    if not path.exists():
        return [], offset
    with open(path, "rb") as stream:
        stream.seek(offset)
        data = stream.read()
    whole = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], offset + len(whole)


class EventSink(Sink):
    """Writes every call as an event; `replay` makes the same call on another sink."""

    def __init__(self, stage: str):
        self._stage, self._last, self._pending = stage, 0.0, None
        emit("open", stage=stage)

    def bar_start(self, description: str, total: int, unit: str, done: int) -> None:
        self._last, self._pending = 0.0, None
        emit("bar_start", description=description, total=total, unit=unit, done=done)

    def bar_advance(self, done: int, fields: dict[str, float]) -> None:
        self._pending = {"done": done, "fields": fields}
        if time.monotonic() - self._last >= _BAR_SECONDS:
            self._flush()

    def bar_end(self) -> None:
        self._flush()
        emit("bar_end")

    def note(self, message: str) -> None:
        emit("note", message=message)

    def close(self, status: str, metrics: dict[str, Any]) -> None:
        emit("close", stage=self._stage, status=status)

    def _flush(self) -> None:
        if self._pending is not None:
            emit("bar_advance", **self._pending)
            self._last, self._pending = time.monotonic(), None


def replay(event: dict[str, Any], sink: Sink) -> None:
    """Tell a sink what the stage told its event file."""
    match event["event"]:
        case "bar_start":
            sink.bar_start(event["description"], event["total"], event["unit"], event["done"])
        case "bar_advance":
            sink.bar_advance(event["done"], event["fields"])
        case "bar_end":
            sink.bar_end()
        case "note":
            sink.note(event["message"])
