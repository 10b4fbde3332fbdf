"""What merging is worth in the stable phase: held-out loss of merged weights minus that of the last ones, by step and window.

    python -m benchmarks.merging [--corpus artifacts/corpus] [--steps 300] [--every 10] [--windows 4,8,16] [--svg docs/figures/merging.svg]

The pretrain section of the profile in force (params.yaml) over `--steps`, its rate constant after the warm-up. Weights are kept every
`--every` steps after it; a merge is of the newest `window` of them, with the stage's coefficients. Below zero the merged weights are the
better ones. Values are means over seeds, with the standard error over them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stagecraft.megatron_cpu  # noqa: F401

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.estimates import shown
from benchmarks.schedules import shortened
from components.pretrain.params import Params
from components.pretrain.rows import Heldout, PhaseRows, TokenFiles
from components.pretrain.train import built
from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.contract.figures import write_svg
from stagecraft.contract.params import load
from stagecraft.engine import parallel
from stagecraft.engine.merging import Merger

Curve = dict[int, dict[str, float]]  # by step: held-out loss of the "last" weights, and of the merges by window


def train(params: Params, corpus: Path, windows: Sequence[int]) -> Curve:
    """One seed's curve."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        return _train(params, corpus, windows, Path(work))


def _train(params: Params, corpus: Path, windows: Sequence[int], work: Path) -> Curve:
    files = TokenFiles(corpus, work / "index")
    rows, heldout = PhaseRows(files, params.phases, params.seed), Heldout(files, params)
    trainer = built(params, params.layout)
    mergers = {window: Merger(replace(params.merge, window=window), work / str(window), trainer.module, reach=0) for window in windows}
    loss = partial(heldout.loss, trainer, params.heldout_look_rows)
    curve: Curve = {}
    for step in range(params.steps):
        trainer.step(rows.read(step))
        if (done := trainer.steps_done) <= params.warmup_steps:
            continue
        for window, merger in mergers.items():
            merged = merger.look(done, loss)
            if merged is not None:
                if done not in curve:
                    curve[done] = {"last": loss()}
                curve[done][str(window)] = merged
    parallel.shutdown()
    return curve


def gains(seeds: Sequence[Curve], step: int, window: str) -> list[float]:
    """Of each seed the merged weights' loss minus the last ones'; empty while the window is not full."""
    return [curve[step][window] - curve[step]["last"] for curve in seeds if window in curve[step]]


def table_of(seeds: Sequence[Curve], windows: Sequence[int], title: str) -> Table:
    """Ten of the steps, evenly; a column per window."""
    table = Table(title=title)
    for column in ("step", "last weights", *(f"merged {window}: minus last" for window in windows)):
        table.add_column(column, justify="right")
    steps = sorted(seeds[0])
    for step in steps[::-max(1, len(steps) // 10)][::-1]:
        table.add_row(str(step), shown([curve[step]["last"] for curve in seeds], ".4f"),
                      *(shown(values, "+.4f") if (values := gains(seeds, step, str(window))) else "" for window in windows))
    return table


def figure_of(seeds: Sequence[Curve], windows: Sequence[int]) -> Figure:
    """The differences by step: a thin line per seed, a thick one for their mean."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for window, colour in zip(windows, ("tab:blue", "tab:green", "tab:red", "tab:purple", "tab:orange")):
        steps = [step for step in sorted(seeds[0]) if str(window) in seeds[0][step]]
        each = [gains(seeds, step, str(window)) for step in steps]
        axes.plot(steps, each, color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(steps, [statistics.fmean(values) for values in each], color=colour, linewidth=1.8, label=f"{window} weights")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("held-out loss, merged minus last (nats)")
    axes.set_xlabel(f"step (thin: one seed, thick: mean of {len(seeds)})")
    axes.legend()
    return figure


def main() -> int:
    """Train, print the table, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, default=Path("artifacts/corpus"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=10, help="steps between the weights that are merged")
    parser.add_argument("--windows", default="4,8,16", help="how many weights are merged, at most five such numbers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="seeds trained at a time")
    parser.add_argument("--svg", type=Path, help="where to write the figure")
    args = parser.parse_args()
    windows = sorted(int(window) for window in args.windows.split(","))
    params = shortened(load(Params, "pretrain"), args.steps)
    merge = replace(params.merge, every=args.every, use="never")
    params = replace(params, decay_steps=0, merge=merge, long_context=replace(params.long_context, steps=0, alternating_steps=0))
    if (full := params.warmup_steps + windows[-1] * args.every) > args.steps:
        raise UserError(f"a window of {windows[-1]} is full after step {full} at the earliest", where="--steps", mend="train longer")
    with get_context("spawn").Pool(args.processes) as pool:
        seeds = pool.map(partial(train, corpus=args.corpus, windows=windows), [replace(params, seed=seed) for seed in range(args.seeds)])
    tokens = params.global_batch * params.sequence_length
    title = f"{args.steps} steps of {tokens} tokens, weights every {args.every} steps, {args.seeds} seeds: mean ± standard error"
    Console(width=140).print(table_of(seeds, windows, title))
    if args.svg:
        write_svg(figure_of(seeds, windows), args.svg)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
