"""What a search decided, as a table (CSV) and a figure, and the frontier of divergence against bits."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from components.quantize.operators import FORMATS
from components.quantize.search import Problem
from stagecraft.contract.files import write_atomic

COLOURS = {"nvfp4": "#aa3377", "fp8": "#ccbb44", "bf16": "#8a8f98"}
ORDER = ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "fc1_latent_proj", "experts", "fc2_latent_proj",
         "shared_experts.up_proj", "shared_experts.down_proj")


@dataclass(frozen=True)
class Point:
    """One quantised checkpoint on the frontier: bits per counted parameter, the estimate and the measure of nats per token from the
    source, and the budget it was searched with."""

    series: str
    bits: float
    sensitivity: float
    kl: float
    budget: float | None = None


def rows(problem: Problem, choice: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per operator: family, layer, parameters, format, bits per parameter, sensitivity of the choice and of each format."""
    return [{"operator": operator.name, "family": operator.family, "layer": operator.layer, "parameters": operator.numel,
             "format": (fmt := choice[operator.name]), "bits": operator.bits(fmt) / operator.numel,
             "sensitivity": problem.scores[operator.name][fmt],
             **{f"sensitivity_{other}": problem.scores[operator.name][other] for other in problem.programme.formats}}
            for operator in problem.operators]


def write_csv(path: Path, table: Sequence[Mapping[str, Any]]) -> Path:
    """Write `table`, whose rows have equal keys, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_atomic(path, text.getvalue())
    return path


def decision_figure(problem: Problem, choice: Mapping[str, str]) -> Figure:
    """Operator family by layer: above the format chosen, below what the cheapest format would do to the loss."""
    layers = sorted({operator.layer for operator in problem.operators})
    families = [family for family in ORDER if any(operator.family == family for operator in problem.operators)]
    cheapest = problem.programme.formats[0]
    figure = Figure(figsize=(3.2 + 0.45 * len(layers), 1.6 + 0.5 * len(families)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    formats = [[float("nan")] * len(layers) for _ in families]
    losses = [[float("nan")] * len(layers) for _ in families]
    for operator in problem.operators:
        place = families.index(operator.family), layers.index(operator.layer)
        formats[place[0]][place[1]] = FORMATS.index(choice[operator.name])
        losses[place[0]][place[1]] = max(problem.scores[operator.name][cheapest], 1e-12)
    upper.imshow(formats, cmap=ListedColormap(list(COLOURS.values())), vmin=-0.5, vmax=2.5, aspect="auto")
    upper.legend(handles=[Patch(color=COLOURS[fmt], label=fmt) for fmt in FORMATS], loc="lower left", bbox_to_anchor=(0, 1), ncols=3,
                 frameon=False)
    shown = lower.imshow(losses, norm=LogNorm(), cmap="viridis", aspect="auto")
    figure.colorbar(shown, ax=lower, label=f"sensitivity to {cheapest}, nats/token")
    for axes in (upper, lower):
        axes.set_yticks(range(len(families)), families)
    lower.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    lower.set_xlabel("layer")
    return figure


def frontier_figure(points: Sequence[Point]) -> Figure:
    """Divergence against effective bits: lines for searches, marks for single formats and recipes."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    looks = {"search": {"marker": "o", "markersize": 4, "color": "#4477aa"},
             "ModelOpt's search": {"marker": "s", "markersize": 9, "fillstyle": "none", "linestyle": ":", "color": "#8a8f98"}}
    for series in dict.fromkeys(point.series for point in points):
        own = sorted((point.bits, point.kl) for point in points if point.series == series)
        axes.plot(*zip(*own), label=series, **looks.get(series, {"marker": "D", "markersize": 7, "linestyle": "none"}))
    axes.set(xlabel="effective bits per parameter", ylabel="KL divergence from the source, nats/token", yscale="log")
    axes.grid(color="#e4e6ea")
    axes.legend(frameon=False)
    return figure
