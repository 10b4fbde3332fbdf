"""Megabytes per second and core of the number formats: plain PyTorch, compiled, and ModelOpt, on the same tensors in turn.

    python -m benchmarks.numerics [--rows 4096] [--columns 1024] [--rounds 7] [--only "scale search"]

The figures are those of the fastest of the rounds, in CPU time, so other work on the machine counts little; `x` is the ratio to plain
PyTorch. `--four-over-six` prints instead what choosing each block's largest code, 4 or 6 (arXiv 2512.02010), saves of the squared error.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from components.quantize import modelopt_cpu
from stagecraft.numerics import backend, fp8, least_squares, mxfp8, nvfp4
from stagecraft.numerics.rounding import E2M1_MAX, e2m1

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
    """CPU seconds of one call."""
    started = time.process_time()
    operation(x)
    return time.process_time() - started


def four_over_six(x: Tensor, tiles: bool) -> tuple[float, float]:
    """Relative squared errors of plain NVFP4 and of the better of two scales per block; the tensor scale leaves room for the larger one."""
    blocks = x.view(len(x) // 16, 16, -1, 16).permute(0, 2, 1, 3).reshape(-1, 256) if tiles else x.reshape(-1, 16)

    def error(code: float, tensor_scale: Tensor) -> Tensor:
        scale = nvfp4.block_scales(blocks.abs().amax(1, keepdim=True) * (E2M1_MAX / code), tensor_scale).float() * tensor_scale
        return (e2m1(blocks.abs() / scale) * scale - blocks.abs()).square().sum(1)

    amax, total = x.abs().amax(), blocks.square().sum()
    roomy = amax / (E2M1_MAX * 256)
    return float(error(6, amax / nvfp4.MAX).sum() / total), float(torch.minimum(error(6, roomy), error(4, roomy)).sum() / total)


def print_four_over_six(checkpoint: Path | None) -> None:
    """Print the table of errors on random numbers and the large matrices of a checkpoint."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(1024, 1024, generator=generator)
    chi = torch.randn(4, 1024, 1024, generator=generator).square().mean(0).sqrt()
    data = {"normal": normal, "heavy tails (Student t, 4 degrees)": normal / chi}
    for name, weight in (load_file(checkpoint) if checkpoint else {}).items():
        if weight.dim() == 2 and not any(size % 16 for size in weight.shape) and "experts" not in name.replace("shared_experts", ""):
            data[name] = weight.float()
    table = Table(title="relative squared error")
    for column in ("values", "blocks", "plain", "4 or 6", "x"):
        table.add_column(column, justify="left" if column in ("values", "blocks") else "right")
    for name, x in data.items():
        for tiles in (False, True):
            plain, better = four_over_six(x, tiles)
            table.add_row(name, "16 x 16" if tiles else "1 x 16", f"{plain:.3e}", f"{better:.3e}", f"{better / plain:.3f}")
    Console(width=120).print(table)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=1024, help="a multiple of 32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--four-over-six", action="store_true", help="errors in place of rates")
    parser.add_argument("--checkpoint", type=Path, help="safetensors whose matrices are measured too, with --four-over-six")
    args = parser.parse_args()
    if args.four_over_six:
        return print_four_over_six(args.checkpoint)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    theirs = modelopt_operations()
    table = Table(title=f"MB/s in and core, [{args.rows}, {args.columns}]")
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
            rate = {mode: x.numel() * x.element_size() / 1e6 / min(times) for mode, times in seconds.items() if times}
            other = [f"{rate['modelopt']:.4g}", f"{rate['modelopt'] / rate['eager']:.2f}"] if "modelopt" in rate else ["", ""]
            table.add_row(name, str(dtype).removeprefix("torch."), f"{rate['eager']:.4g}", f"{rate['compiled']:.4g}",
                          f"{rate['compiled'] / rate['eager']:.2f}", *other, f"{first:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
