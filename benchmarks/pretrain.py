"""Speed of a pre-training step: tokens per second of ours and of transformers' NemotronHForCausalLM, same weights, rows and optimizer.

    python -m benchmarks.pretrain [--sizes 0.5,1,3] [--steps 12] [--dtype float32] [--profile]

Sizes are multiples of the widths of the profile in force (params.yaml). Every contender is a process of one thread; they take their steps
in turn, unquantised in `--dtype` with AdamW, without MTP, which transformers does not train. Before the first step their losses on the same
rows must agree: the work is the same. transformers runs as it comes, and again with what stagecraft/onednn does to a process. Seconds are
the processes' own (CPU), so other work on the machine counts little; ratios are medians over pairs of neighbouring steps. `--profile`
prints where the time goes, by parts of the model, in the profile's own step (recipe, MTP and optimizer included) and in ours of the race at
the profile's widths, and what a large product's rate lets either gain at most.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_NUM_THREADS", "1")

import stagecraft.megatron_cpu  # noqa: F401

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.step_profile import show
from components.pretrain.params import Params
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.files import write_json
from stagecraft.contract.params import load
from stagecraft.engine import parallel
from stagecraft.engine.batch import Batch
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.model.config import Architecture

CONTENDERS = OURS, QUANTISED, THEIRS, WITH_OUR_PRODUCTS = ("ours", "ours, NVFP4 recipe", "transformers", "transformers, our products")
TOLERANCE = {"float32": 1e-3, "bfloat16": 3e-2}  # of the first losses, nats
WARM_UP = 3  # steps that compile and allocate
WIDTHS = ("hidden_size", "num_attention_heads", "num_key_value_heads", "mamba_num_heads", "moe_intermediate_size", "moe_latent_size",
          "moe_shared_expert_intermediate_size")


def scaled(architecture: Architecture, factor: float) -> Architecture:
    """The architecture with all widths times `factor`; depth, experts, vocabulary and sizes of heads stay."""
    return replace(architecture, **{name: max(1, int(getattr(architecture, name) * factor)) for name in WIDTHS})


def raced(params: Params, factor: float, dtype: str) -> Params:
    """What the race runs at one size."""
    return replace(params, architecture=scaled(params.architecture, factor), optimizer="adamw", processes=1, dtype=dtype)


def rows_of(params: Params) -> list[Batch]:
    """One step's microbatches of random tokens."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(params.global_batch // params.micro_batch):
        rows = torch.randint(0, params.architecture.vocab_size, (params.micro_batch, params.sequence_length + 1), generator=generator)
        batches.append(Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.ones(len(rows), params.sequence_length)))
    return batches


def new_trainer(params: Params, **options: Any) -> Trainer:
    """Ours, from the profile's seed."""
    parallel.initialize(params.seed)
    return Trainer(params.architecture, Optimization.of(params), max_sequence_length=params.sequence_length,
                   **{"dtype": getattr(torch, params.dtype), "expert_bias_rate": params.expert_bias_rate, "aux_loss": params.aux_loss,
                      **options})


def ours(params: Params, precision: str) -> Callable[[], float]:
    """A function that takes one step and returns its loss."""
    trainer, batches = new_trainer(params, precision=precision), rows_of(params)
    return lambda: trainer.step(batches).loss


def theirs(params: Params) -> Callable[[], float]:
    """The same for transformers, with the fastest AdamW that torch has."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as directory:
        save_file(new_trainer(params, precision="bf16").weights(), Path(directory) / "model.safetensors", {"format": "pt"})
        write_json(Path(directory) / "config.json", params.architecture.to_hf())
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, params.dtype)).train()
    parallel.shutdown()
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.lr / max(1, params.warmup_steps), weight_decay=params.weight_decay,
                                  betas=(0.9, 0.95), fused=True)
    batches = rows_of(params)

    def loss_of(batch: Batch) -> Tensor:
        logits = model(input_ids=batch.tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten()) / len(batches)

    def step() -> float:
        optimizer.zero_grad()
        total = 0.0
        for batch in batches:
            loss = loss_of(batch)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), params.clip)
        optimizer.step()
        return total

    return step


def contend(name: str, params: Params, turn: Connection) -> None:
    """A contender's process: one step for every message, answered by (loss, CPU seconds)."""
    torch.set_num_threads(1)
    step = theirs(params) if name in (THEIRS, WITH_OUR_PRODUCTS) else ours(params, "bf16" if name == OURS else params.precision)
    while turn.recv():
        started = time.process_time()
        loss = step()
        turn.send((loss, time.process_time() - started))


def race(params: Params, steps: int) -> dict[str, list[float]]:
    """CPU seconds of each contender's steps, taken in turn.

    Raises:
        RuntimeError: the first losses differ, so that the contenders do not compute the same.
    """
    context = get_context("spawn")
    turns, processes, first, seconds = {}, [], {}, {name: [] for name in CONTENDERS}
    for name in CONTENDERS:
        turns[name], end = context.Pipe()
        processes.append(context.Process(target=contend, args=(name, params, end), daemon=True))
        with patch.dict(os.environ, {"STAGECRAFT_NUMERICS": "eager"} if name == THEIRS else {}):
            processes[-1].start()
    for step in range(WARM_UP + steps):
        first_up = step % len(CONTENDERS)
        for name in CONTENDERS[first_up:] + CONTENDERS[:first_up]:
            turns[name].send(True)
            loss, taken = turns[name].recv()
            first.setdefault(name, loss)
            if step >= WARM_UP:
                seconds[name].append(taken)
    for turn in turns.values():
        turn.send(False)
    for process in processes:
        process.join()
    if abs(first[OURS] - first[THEIRS]) > TOLERANCE[params.dtype]:
        raise RuntimeError(f"the first losses are {first}: not the same work")
    return seconds


def gemm_rate(size: int = 1024, repeats: int = 5) -> float:
    """FLOP per CPU second of a float32 product of `size` x `size` matrices: the limit."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    times = []
    for _ in range(repeats + 1):
        started = time.process_time()
        a @ b
        times.append(time.process_time() - started)
    return 2 * size**3 / min(times[1:])


def profile(params: Params, raced: Params, rate: float, console: Console) -> None:
    """Where the time of the profile's own step goes, and that of ours in the race; `rate` in FLOP per CPU second is the limit."""
    own = new_trainer(params, precision=params.precision, mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale)
    show(own, rows_of(params), "the profile's own step", rate, console)
    parallel.shutdown()
    show(new_trainer(raced, precision="bf16"), rows_of(raced), "ours of the race", rate, console)
    parallel.shutdown()


def main() -> int:
    """Race at every size, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.5,1,3")
    parser.add_argument("--steps", type=int, default=12, help="measured, after three that are not")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32", help="of weights and activations, in all contenders")
    parser.add_argument("--profile", action="store_true", help="where the time of our steps goes, instead of the race")
    args = parser.parse_args()
    base, console = load(Params, "pretrain"), Console(width=140)
    torch.set_num_threads(1)
    rate = gemm_rate()
    console.print(f"float32 product of 1024 x 1024: {rate / 1e9:.0f} GFLOP per CPU second")
    if args.profile:
        profile(base, raced(base, 1.0, args.dtype), rate, console)
        return 0
    tokens = base.global_batch * base.sequence_length
    table = Table(title=f"steps of {tokens} tokens, {args.steps} in turn: medians")
    for column in ("widths", "contender", "CPU s/step", "tokens per CPU second", "x transformers", "x ours unquantised"):
        table.add_column(column, justify="left" if column == "contender" else "right")
    for size in args.sizes.split(","):
        params = raced(base, float(size), args.dtype)
        seconds = race(params, args.steps)
        for name in CONTENDERS:
            median = statistics.median(seconds[name])
            faster = [statistics.median(a / b for a, b in zip(seconds[other], seconds[name])) for other in (THEIRS, OURS)]
            table.add_row(f"{size} x", name, f"{median:.3f}", f"{tokens / median:,.0f}", *(f"{times:.2f}" for times in faster))
    console.print(table)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
