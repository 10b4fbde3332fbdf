"""Megabytes per second of the number formats: plain PyTorch, compiled, and ModelOpt, on the same tensors in turn.

    python -m benchmarks.numerics [--rows 4096] [--columns 1024] [--rounds 7] [--only "scale search"]

One thread unless OMP_NUM_THREADS says otherwise. The figures are medians over the rounds; `x` is the ratio to plain PyTorch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from components.quantize import modelopt_cpu
from stagecraft.numerics import backend, fp8, least_squares, mxfp8, nvfp4

Operation = Callable[[Tensor], object]


def modelopt_operations() -> dict[str, Operation]:
    """What ModelOpt has for the same job, as it comes: its CPU arithmetic, packing and unpacking where there is no fused form."""
    modelopt_cpu.load()
    from modelopt.torch.quantization.calib.mse import MseCalibrator, NVFP4MSECalibrator
    from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor
    from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
    from modelopt.torch.quantization.tensor_quant import fp8_eager

    def nvfp4_round_trip(x: Tensor) -> Tensor:
        packed, scales, tensor_scale = NVFP4QTensor.quantize(x, 16)
        return packed.dequantize(dtype=x.dtype, scale=scales, double_scale=tensor_scale, block_sizes={-1: 16})

    def mxfp8_round_trip(x: Tensor) -> Tensor:
        packed, scale = MXFP8QTensor.quantize(x)
        return packed.dequantize(dtype=x.dtype, scale=scale)

    def search(x: Tensor) -> Tensor:
        blocks, amax = x.view(-1, 16), x.abs().max()
        calibrator = NVFP4MSECalibrator(blocks.abs().amax(1, keepdim=True), amax, axis=0,
                                        quant_func=lambda values, at: modelopt_cpu.static_fake_quant(values, at, amax))
        MseCalibrator.collect(calibrator, blocks)
        return MseCalibrator.compute_amax(calibrator)

    return {"NVFP4 rows": nvfp4_round_trip, "MXFP8": mxfp8_round_trip, "FP8": lambda x: fp8_eager(x, x.abs().max()),
            "NVFP4 scale search": search}


OURS: dict[str, Operation] = {
    "NVFP4 rows": nvfp4.quantize_dequantize,
    "NVFP4 rows, stochastic": lambda x: nvfp4.quantize_dequantize(x, stochastic=True, seed=1),
    "NVFP4 columns": lambda x: nvfp4.quantize_dequantize(x, dim=-2),
    "NVFP4 columns, stochastic": lambda x: nvfp4.quantize_dequantize(x, dim=-2, stochastic=True, seed=1),
    "NVFP4 tiles": lambda x: nvfp4.quantize_dequantize(x, two_dimensional=True),
    "MXFP8": mxfp8.quantize_dequantize,
    "FP8": fp8.quantize_dequantize,
    "NVFP4 scale search": least_squares.best_scales,
}


def measure(operation: Operation, x: Tensor) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    operation(x)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=1024, help="a multiple of 32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="operations whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    theirs = modelopt_operations()
    table = Table(title=f"MB/s in, [{args.rows}, {args.columns}], {torch.get_num_threads()} thread")
    for column in ("operation", "dtype", "plain", "compiled", "x", "ModelOpt", "x", "first call, s"):
        table.add_column(column, justify="left" if column in ("operation", "dtype") else "right")
    for name, ours in ((name, operation) for name, operation in OURS.items() if args.only in name):
        for dtype in (torch.bfloat16, torch.float32):
            rows = max(1, args.rows // 32) if "search" in name else args.rows
            x = torch.randn(rows, args.columns, generator=torch.Generator().manual_seed(0)).to(dtype)
            with backend.use("compiled"):
                first = measure(ours, x)
            seconds: dict[str, list[float]] = {"eager": [], "compiled": [], "modelopt": []}
            for _ in range(args.rounds):
                for mode in ("eager", "compiled"):
                    with backend.use(mode):
                        seconds[mode].append(measure(ours, x))
                if name in theirs:
                    seconds["modelopt"].append(measure(theirs[name], x.clone()))
            rate = {mode: x.numel() * x.element_size() / 1e6 / statistics.median(times) for mode, times in seconds.items() if times}
            other = [f"{rate['modelopt']:.4g}", f"{rate['modelopt'] / rate['eager']:.2f}"] if "modelopt" in rate else ["", ""]
            table.add_row(name, str(dtype).removeprefix("torch."), f"{rate['eager']:.4g}", f"{rate['compiled']:.4g}",
                          f"{rate['compiled'] / rate['eager']:.2f}", *other, f"{first:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
