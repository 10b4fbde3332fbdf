"""The quality rules of Gopher, C4 and FineWeb over one scan of the text, deciding as datatrove's four filters do."""

from __future__ import annotations

from components.curate.rules import c4, fineweb, gopher, repetition
from components.curate.rules.bounds import RuleBounds
from stagecraft.data.scan import scan

_CHECKS = {"gopher": gopher.failed, "repetition": repetition.failed, "c4": c4.failed, "fineweb": fineweb.failed}


def failed_rule(text: str, bounds: RuleBounds) -> str | None:
    """The first rule that `text` breaks, families in the order of `bounds.families`, or None for a text to keep.

    Args:
        text: any string.
        bounds: families and thresholds.
    """
    scanned = scan(text)
    for family in bounds.families:
        broken = _CHECKS[family](scanned, bounds)
        if broken is not None:
            return broken
    return None
