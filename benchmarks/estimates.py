"""Means with their standard errors over the runs of a benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error over runs; the error of a single run is not a number."""
    return statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def shown(values: Sequence[float], form: str) -> str:
    """Mean and standard error over runs, in a format such as "+.1%"; of a single run its value."""
    mean, error = mean_and_error(values)
    return f"{mean:{form}} ± {error:{form.lstrip('+')}}" if len(values) > 1 else f"{mean:{form}}"
