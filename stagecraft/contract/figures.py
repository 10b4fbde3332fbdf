"""How every figure is written: SVG with text that can be selected, and equal bytes for equal figures, which DVC compares by digest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_svg(figure: Figure, target: Path | TextIO) -> None:
    """Write a matplotlib figure as SVG, cropped to what is drawn."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "stagecraft", "svg.fonttype": "none"}):
        figure.savefig(target, format="svg", bbox_inches="tight", metadata={"Date": None})
