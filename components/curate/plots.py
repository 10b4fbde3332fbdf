"""The figures of the report."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from stagecraft.contract.figures import write_svg
from stagecraft.contract.page import inline_svg

_BLUE = "#4c78a8"
_LANGUAGES = 12  # shown; the rest is one bar


def funnel_figure(report: Mapping[str, Any]) -> Figure:
    """Megabytes left after each step, with the documents written beside the bars."""
    first = report["funnel"][0]
    rows = [("read", first["bytes_in"], first["documents_in"])]
    rows += [(step["step"].replace("_", " "), step["bytes_out"], step["documents_out"]) for step in report["funnel"]]
    return _bars([name for name, _, _ in rows], [size / 1e6 for _, size, _ in rows], [f"{count:,} documents" for _, _, count in rows],
                 "megabytes left after the step", "What curation keeps")


def report_figures(report: Mapping[str, Any]) -> dict[str, str]:
    """Title -> SVG fit to stand in the page."""
    languages = list(report["kept"]["language"].items())
    shown = dict(languages[:_LANGUAGES])
    if len(languages) > _LANGUAGES:
        shown["others"] = sum(count for _, count in languages[_LANGUAGES:])
    figures = {
        "Funnel": funnel_figure(report),
        "Quality tiers": _bars([f"tier {tier}" for tier in sorted(report["tiers"])], [report["tiers"][t] for t in sorted(report["tiers"])],
                               None, "documents", "Quality tiers, 5 the best"),
        "Lengths": _lengths(report["lengths"]),
        "Languages": _bars(list(shown), list(shown.values()), None, "documents", "Languages"),
        **{f"Blend of {phase}": _pie(portions, f"Blend of {phase}") for phase, portions in report["blend"].items()},
    }
    return {title: _svg(figure, f"figure{index}-", title) for index, (title, figure) in enumerate(figures.items())}


def _bars(names: list[str], values: list[float], labels: list[str] | None, axis: str, title: str) -> Figure:
    figure = Figure(figsize=(7, 0.35 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, values, color=_BLUE)
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set(xlabel=axis, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _lengths(histogram: Mapping[str, list[float]]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.stairs(histogram["documents"], histogram["edges"], fill=True, color=_BLUE)
    axes.set(xscale="log", xlabel="bytes of the document", ylabel="documents", title="Lengths")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _pie(portions: list[dict[str, Any]], title: str) -> Figure:
    weights: dict[str, float] = {}
    for portion in portions:
        weights[portion["category"]] = weights.get(portion["category"], 0) + portion["weight"]
    weights = dict(sorted(weights.items(), key=lambda item: -item[1]))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab20"].colors  # at least as many as there are categories
    wedges, _ = axes.pie(weights.values(), colors=colours, startangle=90, counterclock=False)
    # Beside the pie: labels of thin slices would lie on each other.
    axes.legend(wedges, [f"{100 * weight:.1f}%  {name}" for name, weight in weights.items()], loc="center left", bbox_to_anchor=(1, 0.5),
                frameon=False)
    axes.set_title(title)
    return figure


def _svg(figure: Figure, prefix: str, title: str) -> str:
    stream = io.StringIO()
    write_svg(figure, stream)
    return inline_svg(stream.getvalue(), prefix, title)
