"""How long a checkpoint stops the training: written beside it, as the stage does, and waited for.

    python -m benchmarks.checkpoints [--sizes 1,3] [--checkpoints 6] [--steps 12] [--directory DIR]

Sizes are multiples of the widths of the profile in force (params.yaml); one process of one thread. Of every checkpoint the seconds of the
wall clock in which no step runs: all of it where training waits; the copy and the plan at its beginning, the looks between steps and the
metadata at its end where it goes on. After each checkpoint `--steps` steps are taken. Where it goes on, "writing" is the time until the
checkpoint is whole, and "step x" the median of the steps taken meanwhile over that of the others: the thread takes a share of the cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stagecraft.megatron_cpu  # noqa: F401

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.pretrain import new_trainer, rows_of, scaled
from components.pretrain.params import Params
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.params import load
from stagecraft.engine import parallel
from stagecraft.engine.saving import Saver


@dataclass
class Times:
    """Seconds of the wall clock: stopped and writing by checkpoint, of steps beside a write and of others."""

    stopped: list[float] = field(default_factory=list)
    writing: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


def seconds(work: Callable[[], object]) -> float:
    """Of the wall clock that `work` takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def measure(params: Params, directory: Path, checkpoints: int, steps: int, *, wait: bool) -> tuple[Times, float]:
    """Times, and gigabytes of a checkpoint. The first checkpoint, which allocates and plans anew, is not measured."""
    trainer, batches = new_trainer(params, precision="bf16"), rows_of(params)
    saver, times = Saver(directory), Times()
    trainer.step(batches)
    for number in range(checkpoints + 1):
        started = time.monotonic()
        stopped, whole = seconds(lambda: saver.save(trainer)), directory / f"step-{trainer.steps_done:08d}"
        if wait:
            stopped += seconds(saver.finish)
        written = 0.0
        for _ in range(steps):
            under_way = not whole.exists()
            step = seconds(lambda: trainer.step(batches))
            stopped += seconds(saver.poll)
            if number:
                (times.beside if under_way else times.alone).append(step)
            if not written and whole.exists():
                written = time.monotonic() - started
        stopped += seconds(saver.finish)
        if number:
            times.stopped.append(stopped)
            times.writing.append(written or time.monotonic() - started)
    size = sum(path.stat().st_size for path in whole.iterdir()) / 1e9
    parallel.shutdown()
    return times, size


def main() -> int:
    """Measure both ways at every size, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,3")
    parser.add_argument("--checkpoints", type=int, default=6, help="measured, after one that is not")
    parser.add_argument("--steps", type=int, default=12, help="after each")
    parser.add_argument("--directory", type=Path, help="where to write (default: the system's temporary directory)")
    args = parser.parse_args()
    base = load(Params, "pretrain")
    torch.set_num_threads(1)
    table = Table(title=f"{args.checkpoints} checkpoints, {args.steps} steps after each: medians (largest)")
    for column in ("widths", "GB", "training", "seconds stopped", "writing", "step x"):
        table.add_column(column, justify="left" if column == "training" else "right")
    for size in args.sizes.split(","):
        params = replace(base, architecture=scaled(base.architecture, float(size)), optimizer="adamw", processes=1)
        for wait in (True, False):
            with tempfile.TemporaryDirectory(dir=args.directory) as directory:
                times, gigabytes = measure(params, Path(directory), args.checkpoints, args.steps, wait=wait)
            slower = f"{statistics.median(times.beside) / statistics.median(times.alone):.2f}" if times.beside and times.alone else ""
            table.add_row(f"{size} x", f"{gigabytes:.3f}", "waits" if wait else "goes on",
                          f"{statistics.median(times.stopped):.3f} ({max(times.stopped):.3f})",
                          "" if wait else f"{statistics.median(times.writing):.2f}", "" if wait else slower)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
