"""What a stage says while it runs: progress, curves, figures, notes. The sinks decide where that goes.

A stage sees only this class: not MLflow, not DVC, not KFP, not the terminal.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from stagecraft.contract.figures import write_svg
from stagecraft.contract.files import write_atomic


class Sink:
    """Somewhere a run's story is told (terminal, event file, MLflow); each tells the parts that it overrides."""

    def bar_start(self, description: str, total: int, unit: str, done: int) -> None: ...
    def bar_advance(self, done: int, fields: dict[str, float]) -> None: ...
    def bar_end(self) -> None: ...
    def step(self, curve: str, step: int, values: dict[str, float]) -> None: ...
    def earlier(self, curve: str, rows: list[dict[str, float]]) -> None: ...
    def note(self, message: str) -> None: ...
    def record(self, facts: dict[str, Any]) -> None: ...
    def figure(self, path: Path) -> None: ...
    def table(self, name: str, rows: list[dict[str, Any]]) -> None: ...
    def close(self, status: str, metrics: dict[str, Any]) -> None: ...


class Bar:
    """A live bar over `total` units of work."""

    def __init__(self, sinks: Sequence[Sink], total: int, done: int):
        self._sinks, self.total, self.done = sinks, total, done

    def advance(self, amount: int = 1, **fields: float) -> None:
        """Report `amount` more units done; `fields` (loss, rate, ...) are shown beside the bar."""
        self.done += amount
        for sink in self._sinks:
            sink.bar_advance(self.done, fields)


class RunLog:
    """The run log of one stage.

    Args:
        stage: the stage's name.
        plots: directory that receives `<curve>.csv` and figures when the stage ends.
        work: scratch directory that survives a kill; checkpoints and unfinished curves live here.
        sinks: where the story goes.
    """

    def __init__(self, stage: str, plots: Path, work: Path, sinks: Sequence[Sink] = ()):
        self.stage, self.plots, self.work = stage, plots, work
        self._sinks = list(sinks)
        self.environment: dict[str, Any] = {}
        self._rows: dict[str, list[dict[str, float]]] = {}
        self._load_curves()
        self._untold = set(self._rows)  # curves of an attempt before, of which a sink that begins anew knows nothing

    @property
    def cache(self) -> Path:
        """A directory that outlives `work`: for parts of results, each under a key that names all it depends on."""
        directory = self.work.parent.parent / "cache" / self.stage
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    @contextmanager
    def bar(self, description: str, total: int, unit: str = "step", done: int = 0) -> Iterator[Bar]:
        """A live bar; `done` units are already behind us when resuming."""
        for sink in self._sinks:
            sink.bar_start(description, total, unit, done)
        try:
            yield Bar(self._sinks, total, done)
        finally:
            for sink in self._sinks:
                sink.bar_end()

    def step(self, step: int, curve: str = "train", **values: float) -> None:
        """Record one point of a curve (plots/<stage>/<curve>.csv, and MLflow)."""
        row = {"step": step, **{key: float(value) for key, value in values.items()}}
        self._tell_earlier(curve)
        self._rows.setdefault(curve, []).append(row)
        with open(self.work / f"{curve}.curve.jsonl", "a") as stream:
            stream.write(json.dumps(row) + "\n")
        for sink in self._sinks:
            sink.step(curve, step, values)

    def rewind(self, step: int, *curves: str) -> None:
        """Forget points after `step`, of all curves or those named: training resumes from a checkpoint taken there."""
        for curve in curves or self._rows:
            self._rows[curve] = [row for row in self._rows.get(curve, ()) if row["step"] <= step]
            write_atomic(self.work / f"{curve}.curve.jsonl", "".join(json.dumps(row) + "\n" for row in self._rows[curve]))
            self._tell_earlier(curve)

    def curve(self, curve: str = "train") -> list[dict[str, float]]:
        """The points recorded so far, oldest first, those before a resume included."""
        return list(self._rows.get(curve, ()))

    def tail_mean(self, key: str, share: float, after: int = 0, until: float = math.inf) -> float:
        """The mean of `key` over the last `share` of the curve `train`, at least one point: an end less noisy than the last step.

        Args:
            after, until: the steps between which the curve is taken, the latter among them.
        """
        values = [row[key] for row in self._rows["train"] if after < row["step"] <= until]
        return fmean(values[-max(1, int(len(values) * share)):])

    def note(self, message: str) -> None:
        """A line for the reader: a decision taken, a file skipped, a fallback and its reason."""
        for sink in self._sinks:
            sink.note(message)

    def record(self, **facts: Any) -> None:
        """Facts for the manifest's environment (requested and actual precision, device, kernels)."""
        self.environment.update(facts)
        for sink in self._sinks:
            sink.record(facts)

    def figure(self, name: str, figure: Any) -> Path:
        """Save a matplotlib figure as plots/<stage>/<name>.svg and hand it to the sinks."""
        path = self.plots / f"{name}.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_svg(figure, path)
        for sink in self._sinks:
            sink.figure(path)
        return path

    def table(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Rows to browse, each with the same keys; nested values are shown as JSON."""
        for sink in self._sinks:
            sink.table(name, rows)

    def attach(self, path: Path) -> None:
        """Hand a file to the sinks that keep files; it must stay where it is until the stage ends (`work` is such a place)."""
        for sink in self._sinks:
            sink.figure(path)

    def close(self, status: str, metrics: dict[str, Any]) -> None:
        """Write the curves where `dvc plots` finds them and end every sink. `status`: FINISHED, FAILED or KILLED."""
        for curve in sorted(self._untold):
            self._tell_earlier(curve)
        if status == "FINISHED":
            for curve, rows in self._rows.items():
                self._write_csv(self.plots / f"{curve}.csv", rows)
        for sink in self._sinks:
            sink.close(status, metrics)

    def _tell_earlier(self, curve: str) -> None:
        """Once it is known which of the points of attempts before count."""
        if curve in self._untold:
            self._untold.remove(curve)
            for sink in self._sinks:
                sink.earlier(curve, self._rows[curve])

    def _load_curves(self) -> None:
        for path in sorted(self.work.glob("*.curve.jsonl")):
            lines = path.read_text().splitlines()
            self._rows[path.name.removesuffix(".curve.jsonl")] = [json.loads(line) for line in lines if line.endswith("}")]

    @staticmethod
    def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(rows)
