"""The table at the end of a run: stages, time, key figure, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stagecraft.cli.watch import Outcome
from stagecraft.contract.stages import PATHS, STAGES
from stagecraft.contract.terminal import duration


def read_metrics(stage: str) -> dict[str, Any]:
    """The figures a stage left."""
    return json.loads(STAGES[stage].metrics_path.read_text())


def key_figure(stage: str) -> str:
    """`heldout bits per byte 1.93`."""
    name = STAGES[stage].key_metric
    value = read_metrics(stage).get(name)
    if value is None:
        return ""
    shown = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f"{name.replace('_', ' ')} {shown}"


def print_summary(console: Console, outcomes: Mapping[str, Outcome], seconds: float) -> None:
    """Print the table and the next steps."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("key figure")
    for stage, outcome in outcomes.items():
        table.add_row(stage, "cached" if outcome.cached else duration(outcome.seconds), key_figure(stage))
    table.add_section()
    table.add_row("in all", duration(seconds), "")
    console.print()
    console.print(table)
    console.print()
    for what, how in _next_steps():
        console.print(f"{what:<24}{how}", highlight=False, soft_wrap=True)


def _next_steps() -> list[tuple[str, str]]:
    report = PATHS["evaluation"] / "report.html"
    steps = [("read the evaluation", str(report))] if Path(report).exists() else []
    return [*steps, ("compare runs", "make ui"), ("serve the champion", "stagecraft serve"), ("talk to it", "stagecraft chat"),
            ("change a number", "edit params.yaml, then kfp run pipelines/full.py (only what it touches runs again)")]
