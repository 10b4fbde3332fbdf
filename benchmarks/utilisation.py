"""How well a training step uses the device: tokens per second, and the share of the peak that a large matrix product reaches on it.

    STAGECRAFT_PARAMS=params/h200.yaml python -m benchmarks.utilisation [--steps 10] [--micro-batches 4] [--transformer-engine]
        [--profile FILE]

The pretrain section of the profile in force on one device, with its recipe, MTP and optimizer, on random tokens: steps of
`--micro-batches` microbatches, after three that compile and allocate. FLOP are the model's (stagecraft/planning/flops.py: products, scan
and attention, forward and backward, no recomputation). The peak is measured on the device, in the profile's dtype. Times are of the wall
clock. `--profile` writes a trace for chrome://tracing of one step, and prints the dearest kernels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from stagecraft.megatron_cpu import ON_CPU

import torch
from rich.console import Console

from benchmarks.pretrain import WARM_UP, new_trainer, rows_of
from components.pretrain.params import Params
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.params import load
from stagecraft.engine import parallel
from stagecraft.engine.batch import Batch
from stagecraft.planning.architecture import nemotron_h
from stagecraft.planning.flops import training_flops

GEMM = 1024 if ON_CPU else 8192  # of the product that the peak is measured by


def seconds(work: Callable[[], object], repeats: int) -> list[float]:
    """Of the wall clock, of each of `repeats` runs of `work` to its end on the device."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.monotonic()
        work()
        torch.cuda.synchronize()
        times.append(time.monotonic() - started)
    return times


def peak(dtype: torch.dtype) -> float:
    """FLOP per second of a product of GEMM x GEMM matrices, the best of ten."""
    a, b = (torch.randn(GEMM, GEMM, device=torch.cuda.current_device()).to(dtype) for _ in range(2))
    return 2 * GEMM**3 / min(seconds(lambda: a @ b, 12)[2:])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--transformer-engine", action="store_true", help="its layers, where ours would be built")
    parser.add_argument("--profile", type=Path, metavar="FILE")
    args = parser.parse_args()
    params, console = load(Params, "pretrain"), Console(width=140)
    params = replace(params, processes=1, global_batch=args.micro_batches * params.micro_batch,
                     long_context=replace(params.long_context, steps=0, alternating_steps=0))
    torch.set_num_threads(1)
    dtype, device = getattr(torch, params.dtype), torch.cuda.current_device()
    trainer = new_trainer(params, precision=params.precision, mtp_depths=params.mtp_depths,
                          mtp_loss_scale=params.mtp_loss_scale, transformer_engine=args.transformer_engine or None)
    batches = [Batch(*(tensor.to(device) for tensor in (batch.tokens, batch.labels, batch.loss_mask))) for batch in rows_of(params)]
    seconds(lambda: trainer.step(batches), WARM_UP)
    step = statistics.median(seconds(lambda: trainer.step(batches), args.steps))
    rate, tokens = peak(dtype), params.global_batch * params.sequence_length
    flops = sum(training_flops(nemotron_h(params.architecture), params.sequence_length, params.mtp_depths).values())
    name = "CPU, one thread" if ON_CPU else torch.cuda.get_device_name()
    engine = "Transformer Engine's layers" if trainer.config.transformer_impl == "transformer_engine" else "our layers"
    console.print(f"{engine}, {params.precision}; scan: {'mamba_ssm' if find_spec('mamba_ssm') and not ON_CPU else 'ours'}")
    console.print(f"{name}: {params.dtype} product of {GEMM} x {GEMM}: {rate / 1e12:,.3f} TFLOP/s")
    console.print(f"{tokens:,} tokens per step, {flops / 1e9:.3f} GFLOP per token: {step:.3f} s, {tokens / step:,.0f} tokens/s, "
                  f"{tokens / step * flops / 1e12:,.3f} TFLOP/s, {tokens / step * flops / rate:.1%} of that product's")
    if not ON_CPU:
        console.print(f"memory at most: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    if args.profile:
        with torch.profiler.profile(record_shapes=True) as events:
            seconds(lambda: trainer.step(batches), 1)
        events.export_chrome_trace(str(args.profile))
        console.print(events.key_averages().table(sort_by="self_cpu_time_total" if ON_CPU else "self_device_time_total", row_limit=25))
    parallel.shutdown()
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
