"""What the pipeline has left in this tree, read afresh for every view: stages, curves, evaluation, artifacts and their lineage."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from stagecraft.contract.manifest import NAME
from stagecraft.contract.stages import PATHS, STAGES
from stagecraft.contract.tracking import numbers

WIDTH, HEIGHT = 320.0, 90.0  # of a curve's drawing, in its own units
_POINTS = 400
_Z95 = 1.959964  # of the normal distribution


@dataclass(frozen=True)
class Curve:
    """A column of a stage's curves over its steps, drawn as the path of an SVG of `WIDTH` x `HEIGHT`."""

    title: str
    path: str
    first: float
    last: float
    least: float
    most: float
    steps: tuple[float, float]


@dataclass(frozen=True)
class StageView:
    """A stage: whether it has run here, its figures (dotted names) and its curves."""

    name: str
    done: bool
    key: str
    figures: dict[str, float]
    curves: list[Curve]


@dataclass(frozen=True)
class Interval:
    """A figure with the bounds of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelView:
    """A model's figures in the evaluation; shares of prompts between 0 and 1."""

    name: str
    exact_match: Interval
    bits_per_byte: Interval
    families: dict[str, Interval]


@dataclass(frozen=True)
class ModeView:
    """What the served model does in a reasoning mode; tokens of an answer, and the share of prompts answered exactly."""

    name: str
    thinking_tokens: Interval
    answer_tokens: Interval
    exact_match: Interval


@dataclass(frozen=True)
class ArtifactView:
    """An artifact by its manifest: digest of its files, the stage that made it and the digests of what it was made from."""

    name: str
    digest: str
    stage: str
    inputs: dict[str, str]
    files: int
    size: int


@dataclass(frozen=True)
class Record:
    """Everything the page shows; empty where nothing has run."""

    stages: list[StageView]
    models: list[ModelView]
    verdict: dict[str, Any]
    modes: list[ModeView]
    artifacts: list[ArtifactView]


def collect(root: Path) -> Record:
    """Read the record of a project directory; a file that is missing or unreadable counts as not there."""
    return Record([_stage(root, name) for name in STAGES], _models(_load(root / PATHS["evaluation"] / "evaluation.json")),
                  _load(root / PATHS["evaluation"] / "promotion.json"), _modes(_load(root / PATHS["serving"] / "report.json")),
                  [view for name, path in PATHS.items() if (view := _artifact(root, name, path))])


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _stage(root: Path, name: str) -> StageView:
    stage = STAGES[name]
    metrics = _load(root / stage.metrics_path)
    curves = [curve for path in sorted((root / stage.plots_path).glob("*.csv")) for curve in _curves(path)]
    return StageView(name, bool(metrics), stage.key_metric, numbers(metrics), curves)


def _curves(path: Path) -> list[Curve]:
    try:
        with open(path, newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, csv.Error, UnicodeDecodeError):
        return []
    found = []
    for column in (rows[0] if rows else {}):
        points = [(_number(row.get("step")), _number(row.get(column))) for row in rows]
        points = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        if column not in (None, "step") and len(points) > 1:
            found.append(_draw(f"{path.stem}: {column}", points))
    return found


def _draw(title: str, points: list[tuple[float, float]]) -> Curve:
    steps, values = zip(*points)
    left, least = min(steps), min(values)
    wide, high = (max(steps) - left) or 1.0, (max(values) - least) or 1.0
    shown = points[::math.ceil(len(points) / _POINTS)]
    path = "M" + " L".join(f"{WIDTH * (step - left) / wide:.1f},{HEIGHT * (1 - (value - least) / high):.1f}" for step, value in shown)
    return Curve(title, path, values[0], values[-1], least, max(values), (left, max(steps)))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _models(evaluation: dict[str, Any]) -> list[ModelView]:
    figures = evaluation.get("figures", {})
    return [ModelView(name, _share(own["exact_match"], sum(each["n"] for each in own["families"].values())),
                      _interval(own["bits_per_byte"], own["bits_per_byte_stderr"]),
                      {family: _share(each["exact_match"], each["n"]) for family, each in own["families"].items()})
            for name, own in figures.items() if "families" in own]


def _modes(serving: dict[str, Any]) -> list[ModeView]:
    names = ("thinking_tokens", "answer_tokens", "exact_match")
    return [ModeView(own["mode"], *(_interval(own[name], own[f"{name}_stderr"]) for name in names)) for own in serving.get("modes", [])]


def _share(value: float, n: int) -> Interval:
    """Wilson's interval of a share of n prompts: within 0 and 1, and wide where none or all of a few are right."""
    bounds = stats.binomtest(round(value * n), n).proportion_ci(0.95, method="wilson")
    return Interval(value, float(bounds.low), float(bounds.high))


def _interval(value: float, stderr: float) -> Interval:
    return Interval(value, value - _Z95 * stderr, value + _Z95 * stderr)


def _artifact(root: Path, name: str, path: Path) -> ArtifactView | None:
    found = _load(root / path / NAME)
    if not found.keys() >= {"digest", "stage", "files"}:
        return None
    files = found["files"].values()
    return ArtifactView(name, found["digest"], found["stage"], found.get("inputs", {}), len(files),
                        sum(file["size"] for file in files))
