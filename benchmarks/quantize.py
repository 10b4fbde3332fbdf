"""The quantize stage measured: the frontier of divergence against bits, with single formats, recipes and ModelOpt's search on it.

    python -m benchmarks.quantize frontier [--model artifacts/aligned] [--corpus artifacts/corpus] [--budgets 9] [--svg docs/frontier.svg]

One thread unless OMP_NUM_THREADS says otherwise. Calibration, held-out windows and the rules of the search are those of the
profile in force (params.yaml). Divergences and bits are those of checkpoints as exported; the estimate is the search's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table

from components.quantize import stage
from components.quantize.decision import frontier_figure
from components.quantize.params import Params
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.figures import write_svg
from stagecraft.contract.params import load
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.terminal import terminal_sink


def frontier(args: argparse.Namespace) -> int:
    """Print the table of the frontier and write its figure."""
    params = load(Params, "quantize")
    params = replace(params, search=replace(params.search, enabled=True, frontier=args.budgets))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        log = RunLog("quantize", Path(work) / "plots", Path(work) / "work", [terminal_sink("quantize: frontier")])
        log.work.mkdir(parents=True)
        setting = stage.prepare(params, {"corpus": args.corpus, "aligned": args.model}, log)
        problem, _ = stage.search(setting)
        points = stage.measure_frontier(setting, problem)
    table = Table(title=f"{args.model}: {len(problem.operators)} operators, {problem.counted:,} parameters counted")
    for column in ("checkpoint", "budget", "bits", "estimate, nats/token", "KL, nats/token"):
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    for point in points:
        table.add_row(point.series, "" if point.budget is None else f"{point.budget:.3f}", f"{point.bits:.3f}",
                      f"{point.sensitivity:.5f}", f"{point.kl:.5f}")
    Console(width=110).print(table)
    print(f"{time.perf_counter() - started:.1f} s: " + ", ".join(f"{step} {value:.1f}" for step, value in setting.seconds.items()))
    if args.svg:
        write_svg(frontier_figure(points), args.svg)
    return 0


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("frontier", help="divergence against effective bits")
    command.add_argument("--model", type=Path, default=Path("artifacts/aligned"))
    command.add_argument("--corpus", type=Path, default=Path("artifacts/corpus"))
    command.add_argument("--budgets", type=int, default=9, help="how many, at least 2")
    command.add_argument("--svg", type=Path, help="where to write the figure")
    command.set_defaults(run=frontier)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return args.run(args)


if __name__ == "__main__":
    exit_on_user_error(main)
