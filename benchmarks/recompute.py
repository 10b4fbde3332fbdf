"""What computing activations again costs and saves: the `recompute` of a layout, by time of a step and memory that waits for backward.

    python -m benchmarks.recompute [--size 1] [--steps 10]

The profile in force (params.yaml), unquantised, with the widths times `--size`; one process of one thread. The levels take their steps in
turn. "kept" is what a microbatch's forward pass leaves for its backward pass, weights apart; "step x" the median step's time over that of
"none".
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

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
from stagecraft.engine.batch import Batch
from stagecraft.engine.trainer import Trainer
from stagecraft.planning.layout import RECOMPUTE


def kept(trainer: Trainer, batch: Batch) -> int:
    """Bytes that the forward pass of a microbatch leaves for its backward pass, without the weights and what is computed again there."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainer.module.parameters()}
    found: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage, in_backward = tensor.untyped_storage(), torch._C._current_graph_task_id() != -1
        if not in_backward and storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes(), tensor  # holding the tensor keeps its address from being used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.step([batch])
    return sum(size for size, _ in found.values())


def measure(params: Params, steps: int) -> dict[str, tuple[float, Sequence[float]]]:
    """By level: gigabytes kept, seconds of every step."""
    trainers = {level: new_trainer(params, precision="bf16", mtp_depths=params.mtp_depths, recompute=level) for level in RECOMPUTE}
    batches = rows_of(params)
    size = {level: kept(trainer, batches[0]) / 1e9 for level, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {level: [] for level in trainers}
    for _ in range(steps):
        for level, trainer in trainers.items():
            started = time.monotonic()
            trainer.step(batches)
            seconds[level].append(time.monotonic() - started)
    parallel.shutdown()
    return {level: (size[level], seconds[level]) for level in trainers}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1.0, help="multiple of the widths")
    parser.add_argument("--steps", type=int, default=10, help="of each level")
    args = parser.parse_args()
    torch.set_num_threads(1)
    base = load(Params, "pretrain")
    params = replace(base, architecture=scaled(base.architecture, args.size), optimizer="adamw", processes=1)
    found = measure(params, args.steps)
    alone = statistics.median(found["none"][1])
    table = Table(title=f"widths x {args.size:g}, {params.micro_batch} rows of {params.sequence_length} tokens")
    for column in ("recompute", "GB kept", "of none", "step x"):
        table.add_column(column, justify="right")
    for level, (size, seconds) in found.items():
        table.add_row(level, f"{size:.3f}", f"{size / found['none'][0]:.0%}", f"{statistics.median(seconds) / alone:.2f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
