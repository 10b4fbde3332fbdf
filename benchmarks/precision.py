"""What NVFP4 costs: the loss of pre-training unquantised, in the NVFP4 recipe and in NVFP4 everywhere, and the time of a step.

    python -m benchmarks.precision [--corpus artifacts/corpus] [--steps 150] [--seeds 3] [--svg docs/figures/precision_gap.svg]

The pretrain section of the profile in force (params.yaml) with its schedule shortened to `--steps`. The three models of a seed begin
with the same weights, see the same rows and take their steps in turn, so both the gap and the ratio of times are of pairs. The training
loss is the mean over the last tenth of the steps, computed in the model's own precision; the held-out loss is of the trained weights,
unquantised. Times are the process's own (CPU seconds of one thread), so other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.estimates import shown
from benchmarks.schedules import shortened
from components.pretrain.params import Params
from components.pretrain.rows import Heldout, PhaseRows, TokenFiles
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.figures import write_svg
from stagecraft.contract.params import load
from stagecraft.engine import parallel
from stagecraft.engine.trainer import Optimization, Trainer

BASE, *_ = RECIPES = ("bf16", "nvfp4", "nvfp4-everywhere")
NAMES = {"bf16": "unquantised", "nvfp4": "NVFP4, the recipe", "nvfp4-everywhere": "NVFP4 everywhere"}


@dataclass
class Run:
    """One model of one seed: its losses by step, CPU seconds by step, and held-out loss."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    heldout: float = 0.0

    @property
    def last(self) -> float:
        """Mean loss of the last tenth of the steps."""
        return statistics.fmean(self.losses[-max(1, len(self.losses) // 10):])


def train(params: Params, corpus: Path) -> dict[str, Run]:
    """The three models of a seed, step by step in turn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        return _train(params, corpus, Path(work))


def _train(params: Params, corpus: Path, work: Path) -> dict[str, Run]:
    files = TokenFiles(corpus, work)
    rows = PhaseRows(files, [phase for phase in params.phases if phase.start < params.steps], params.seed)
    heldout = Heldout(files, params)
    trainers = {}
    for name in RECIPES:
        parallel.initialize(params.seed)
        trainers[name] = Trainer(
            params.architecture, Optimization.of(params), max_sequence_length=params.sequence_length, precision=name,
            dtype=getattr(torch, params.dtype), mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale,
            expert_bias_rate=params.expert_bias_rate, aux_loss=params.aux_loss)
    runs = {name: Run() for name in RECIPES}
    for step in range(params.steps):
        batches = rows.read(step)
        for name in RECIPES[step % 3:] + RECIPES[:step % 3]:
            started = time.process_time()
            result = trainers[name].step(batches)
            runs[name].seconds.append(time.process_time() - started)
            runs[name].losses.append(result.loss)
    for name, trainer in trainers.items():
        runs[name].heldout = heldout.loss(trainer, params.heldout_rows)
    parallel.shutdown()
    return runs


def table_of(seeds: Sequence[dict[str, Run]], title: str) -> Table:
    """Losses, relative gaps to the unquantised model of the same seed, and times."""
    table = Table(title=title)
    for column in ("products", "training loss", "gap", "held-out loss", "gap", "CPU s/step", "x"):
        table.add_column(column, justify="left" if column == "products" else "right")
    skip = min(5, len(seeds[0][BASE].seconds) - 1)  # steps that compile kernels

    def times(name: str) -> list[float]:
        return [second for runs in seeds for second in runs[name].seconds[skip:]]

    for name in RECIPES:
        gaps = [shown([getattr(runs[name], key) / getattr(runs[BASE], key) - 1 for runs in seeds], "+.2%")
                if name != BASE else "" for key in ("last", "heldout")]
        ratio = statistics.median(a / b for a, b in zip(times(name), times(BASE)))
        last, heldout = (shown([getattr(runs[name], key) for runs in seeds], ".4f") for key in ("last", "heldout"))
        table.add_row(NAMES[name], last, gaps[0], heldout, gaps[1], f"{statistics.median(times(name)):.3f}", f"{ratio:.2f}")
    return table


def figure_of(seeds: Sequence[dict[str, Run]]) -> Figure:
    """Loss by step above, gap to the unquantised model of the same seed below: a line per seed, and their mean."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    loss, gap = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    window = max(1, len(seeds[0][BASE].losses) // 10)

    def smooth(values: Iterable[float]) -> np.ndarray:
        return np.convolve(np.asarray(list(values)), np.ones(window) / window, "valid")

    steps = np.arange(window, len(seeds[0][BASE].losses) + 1)
    for name, colour in zip(RECIPES, ("black", "tab:green", "tab:red")):
        curves = [smooth(runs[name].losses) for runs in seeds]
        loss.plot(steps, np.mean(curves, 0), color=colour, linewidth=1, label=NAMES[name])
        if name != BASE:
            gaps = [100 * (curve / smooth(runs[BASE].losses) - 1) for curve, runs in zip(curves, seeds)]
            for values in gaps:
                gap.plot(steps, values, color=colour, linewidth=0.6, alpha=0.5)
            gap.plot(steps, np.mean(gaps, 0), color=colour, linewidth=1.8)
    loss.set_ylabel("loss (nats per token)")
    loss.legend()
    gap.axhline(0, color="black", linewidth=0.8)
    gap.set_ylabel("gap to unquantised (%)")
    gap.set_xlabel(f"step (means over {window}; thin: one seed, thick: mean of {len(seeds)})")
    return figure


def main() -> int:
    """Train, print the table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("artifacts/corpus"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="seeds trained at a time")
    parser.add_argument("--svg", type=Path, help="where to write the figure")
    args = parser.parse_args()
    params = shortened(load(Params, "pretrain"), args.steps)
    seeds = []
    console = Console(width=140)
    with get_context("spawn").Pool(args.processes) as pool:
        profiles = [replace(params, seed=seed) for seed in range(args.seeds)]
        for seed, runs in enumerate(pool.imap(partial(train, corpus=args.corpus), profiles)):
            seeds.append(runs)
            console.print(f"seed {seed}: " + ", ".join(f"{NAMES[name]} {run.last:.4f}" for name, run in runs.items()))
    tokens = params.global_batch * params.sequence_length
    console.print(table_of(seeds, f"{args.steps} steps of {tokens} tokens, {args.seeds} seeds: mean ± standard error"))
    if args.svg:
        write_svg(figure_of(seeds), args.svg)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
