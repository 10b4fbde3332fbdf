"""Rate of rounding to NVFP4 on a GPU: plain PyTorch and our Triton kernel, in turn.

    python -m benchmarks.numerics_gpu [--rows 16384] [--columns 8192] [--rounds 20]

GB per second read and written, medians; a copy of the same tensor is the limit. The Triton kernel must give the bits of plain PyTorch.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stagecraft.contract.errors import UserError, exit_on_user_error
from stagecraft.numerics import backend, nvfp4

KINDS = {"rows": {}, "rows, stochastic": {"stochastic": True, "seed": 1}, "columns": {"dim": -2},
         "columns, stochastic": {"dim": -2, "stochastic": True, "seed": 1}, "tiles": {"two_dimensional": True}}
MODES = ("eager", "compiled")  # of which the second is our kernel for a tensor on a GPU


def seconds(work: Callable[[], object]) -> float:
    """On the device, of one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def rounded(mode: str, x: Tensor, options: dict) -> Tensor:
    """`x` to NVFP4 and back."""
    with backend.use(mode):
        return nvfp4.quantize_dequantize(x, **options)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--columns", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError("no CUDA device", where="this machine", mend="on a CPU it is python -m benchmarks.numerics")
    x = torch.randn(args.rows, args.columns, device="cuda").bfloat16()
    moved = 2 * x.numel() * x.element_size() / 1e9
    table = Table(title=f"GB/s, [{args.rows}, {args.columns}] bfloat16, {torch.cuda.get_device_name()}")
    for column in ("operation", "plain", "Triton", "x"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    copy = statistics.median(seconds(x.clone) for _ in range(args.rounds))
    table.add_row("copy", f"{moved / copy:,.0f}", "", "")
    for kind, options in KINDS.items():
        if not torch.equal(*(rounded(mode, x, options) for mode in MODES)):
            raise RuntimeError(f"{kind}: the Triton kernel's bits are not those of plain PyTorch")
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(args.rounds):
            for mode in MODES:
                times[mode].append(seconds(partial(rounded, mode, x, options)))
        plain, triton = (moved / statistics.median(times[mode]) for mode in MODES)
        table.add_row(kind, f"{plain:,.0f}", f"{triton:,.0f}", f"{triton / plain:.1f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
