"""Means with their standard errors over what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


def estimated(name: str, values: Sequence[float]) -> dict[str, float]:
    """{name: mean, name_stderr: its standard error}; the latter not of a single value, and nothing of none."""
    if not values:
        return {}
    error = {f"{name}_stderr": float(stdev(values) / len(values) ** 0.5)} if len(values) > 1 else {}
    return {name: float(fmean(values)), **error}
