"""The comparison as one self-contained page: accuracy against speed, the table, the pairs, the protocols."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from components.evaluate.plots import style
from components.evaluate.side_by_side.figures import ALL
from stagecraft.contract.page import inline_svg, render_page
from stagecraft.contract.runlog import RunLog

_TITLE = "Accuracy against throughput"
_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")  # Paul Tol's bright scheme
_MARKERS = "osD^vP"


def render(comparison: dict[str, Any], log: RunLog) -> str:
    """The page as HTML that is well-formed XML too; the figure goes to the log as well."""
    with style():
        path = log.figure("accuracy_against_throughput", accuracy_against_speed(comparison))
    protocols = {name: subject["protocol"] for name, subject in comparison["subjects"].items()}
    return render_page(Path(__file__).with_name("report.html.j2"), {"percent": _percent, "points": _points},
                       **comparison, all=ALL, figure=inline_svg(path.read_text(), "speed-", _TITLE), title=_TITLE, protocols=protocols)


def accuracy_against_speed(comparison: dict[str, Any]) -> Figure:
    """A point per subject: tokens per second across with their interval, accuracy over all prompts up with one standard error."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, subject) in enumerate(comparison["subjects"].items()):
        speed, accuracy = subject["tokens_per_second"], subject["accuracy"][ALL]
        low, high = speed["interval"]
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
        axes.errorbar(speed["value"], 100 * accuracy["value"], xerr=[[speed["value"] - low], [high - speed["value"]]],
                      yerr=100 * accuracy["stderr"], fmt=marker, markersize=8, color=colour, elinewidth=1, capsize=3, label=name)
    axes.set(xlabel="tokens per second", ylabel="accuracy over all prompts, %")
    axes.margins(0.15)
    figure.legend(loc="outside upper center", ncols=len(comparison["subjects"]), frameon=False)
    return figure


def _percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} ± {100 * estimate['stderr']:.1f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")
