"""Float32 products by MKL and by oneDNN, which stagecraft/onednn puts in its place on AMD's processors: GFLOP per CPU second of one thread.

    python -m benchmarks.products
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from stagecraft import onednn

SHAPES = ((1024, 1024, 1024), (1024, 128, 2048), (1024, 128, 600), (256, 64, 128), (64, 64, 128), (16, 64, 128))  # rows, in, out
REPEATS, FLOP = 9, 2e8


def rates() -> list[list[float]]:
    """Of every shape: y = x w^T, dy w and dy^T x, as a linear layer asks for them."""
    torch.set_num_threads(1)
    onednn.replace_products()
    found = []
    for rows, width, out in SHAPES:
        x, w, dy = torch.randn(rows, width), torch.randn(out, width), torch.randn(rows, out)
        flop = 2 * rows * width * out
        found.append([flop / _seconds(product, max(1, int(FLOP / flop))) for product in
                      (lambda: x @ w.t(), lambda: dy @ w, lambda: dy.t() @ x)])  # noqa: B023
    return found


def _seconds(work: Callable[[], object], calls: int) -> float:
    taken = []
    for _ in range(REPEATS + 1):
        started = time.process_time()
        for _ in range(calls):
            work()
        taken.append((time.process_time() - started) / calls)
    return statistics.median(taken[1:])


def compiling() -> float:
    """Seconds that the first product of a shape takes longer than the second: median over 30 shapes."""
    torch.set_num_threads(1)
    onednn.replace_products()
    w, longer = torch.randn(600, 128), []
    for rows in range(512, 512 + 30 * 64, 64):
        x = torch.randn(rows, 128)
        moments = [time.perf_counter()]
        for _ in range(2):
            x @ w.t()
            moments.append(time.perf_counter())
        longer.append(moments[1] - moments[0] - (moments[2] - moments[1]))
    return statistics.median(longer)


def _apart(work: Callable[[], Any], settings: dict[str, str]) -> Any:
    with patch.dict(os.environ, settings), ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(work).result()


def main() -> int:
    """Measure both in processes of their own, and print."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    theirs, ours = _apart(rates, {"STAGECRAFT_NUMERICS": "eager"}), _apart(rates, {})
    replaced = onednn.replace_products()
    table = Table(title="GFLOP per CPU second of x w^T, dy w, dy^T x" if replaced else "MKL stays on this processor: both are MKL's")
    for column in ("rows, in, out", "MKL", "oneDNN", "x MKL"):
        table.add_column(column, justify="right")
    for shape, before, after in zip(SHAPES, theirs, ours):
        table.add_row(", ".join(map(str, shape)), *(", ".join(f"{rate / 1e9:.0f}" for rate in rates) for rates in (before, after)),
                      ", ".join(f"{new / old:.2f}" for old, new in zip(before, after)))
    console = Console(width=140)
    console.print(table)
    console.print(f"the first product of a shape takes {_apart(compiling, {}) * 1e3:.2f} ms more than the second")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
