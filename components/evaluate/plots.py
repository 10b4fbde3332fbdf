"""The report's two figures: exact match by family and bits per byte, with their standard errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.figure import Figure

from components.evaluate.summary import Score

COLOURS = {"base": "#8a8f98", "sft": "#4477aa", "aligned": "#228833", "fp8": "#ccbb44", "nvfp4": "#aa3377"}
"""After Paul Tol's bright scheme: told apart by readers with any kind of colour vision; hatches and labels say the same."""
HATCHES = {"base": "", "sft": "", "aligned": "", "fp8": "//", "nvfp4": "xx"}
STYLE = {
    "font.family": "sans-serif", "font.size": 10, "hatch.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e6ea",
    "axes.edgecolor": "#8a8f98",
}


@contextmanager
def style() -> Iterator[None]:
    """Settings under which figures are made and saved."""
    with matplotlib.rc_context(STYLE):
        yield


def exact_match(scores: dict[str, Score]) -> Figure:
    """Bars of exact match in percent: one group per family and one for all of them, one bar per model."""
    families = [*next(iter(scores.values())).families, "all"]
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(scores)
    for index, (name, score) in enumerate(scores.items()):
        estimates = [*score.families.values(), score.exact_match]
        places = [group + (index - (len(scores) - 1) / 2) * width for group in range(len(families))]
        axes.bar(places, [100 * e.value for e in estimates], width, yerr=[100 * e.stderr for e in estimates], label=name,
                 color=COLOURS[name], hatch=HATCHES[name], edgecolor="white", error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#30343b"})
    axes.axvline(len(families) - 1.5, color="#8a8f98", linewidth=0.8, linestyle=":")
    axes.set_xticks(range(len(families)), families)
    axes.set(ylabel="exact match, %", ylim=(0, 104))
    axes.grid(visible=False, axis="x")
    figure.legend(loc="outside upper center", ncols=len(scores), frameon=False)
    return figure


def bits_per_byte(scores: dict[str, Score]) -> Figure:
    """Bits per byte of held-out text as points with one standard error to either side; less is better."""
    figure = Figure(figsize=(10, 0.6 + 0.42 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for place, (name, score) in enumerate(scores.items()):
        estimate = score.bits_per_byte
        axes.errorbar(estimate.value, place, xerr=estimate.stderr, fmt="o", color=COLOURS[name], ecolor="#30343b", elinewidth=1, capsize=3)
        axes.annotate(f"{estimate.value:.3f}", (estimate.value + estimate.stderr, place), xytext=(7, 0), textcoords="offset points",
                      va="center")
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set(xlabel="bits per byte (less is better)", ylim=(len(scores) - 0.5, -0.5))
    axes.margins(x=0.12)
    return figure
