"""The Mamba-2 scan as one C++ loop: compiled once per machine, kept in the user's cache; without a compiler mamba.py's products do.

`STAGECRAFT_NUMERICS=eager` turns it off. Same inputs, same bits on one machine; another kind of CPU, or the products of chunks, give
sums in another order.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("scan.cpp")
# Without -ffast-math in full glibc's vectorised expf is not used. It must not reach the link: there GCC before 13 adds an initialiser that
# flushes subnormal numbers to zero in the whole process.
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-std=c++17", "-fPIC", "-c")
CHUNK = 32  # states kept at a time for the gradient


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled scan; None, with one warning, where it cannot be had."""
    if os.environ.get("STAGECRAFT_NUMERICS") == "eager":
        return None
    try:
        return ctypes.CDLL(str(_built()))
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or str(error)
        warnings.warn(f"the Mamba-2 scan runs as products of chunks, which is slower: {why.strip().splitlines()[-1]}", stacklevel=2)
        return None


def _built() -> Path:
    """The shared library of this source, these flags, this compiler and this CPU; built under a name of its own, then renamed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError(f"there is no {os.environ.get('CXX', 'g++')}")
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), platform.machine())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    key = hashlib.sha256("\0".join([SOURCE.read_text(), *FLAGS, version, cpu]).encode()).hexdigest()[:16]
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stagecraft" / "native" / f"scan-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            made, unlinked = Path(directory) / path.name, str(Path(directory) / "scan.o")
            for command in ([*FLAGS, str(SOURCE), "-o", unlinked], ["-shared", unlinked, "-o", str(made)]):
                subprocess.run([compiler, *command], capture_output=True, text=True, check=True)
            made.replace(path)
    return path


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


class ConvScan(torch.autograd.Function):
    """y * silu(z) of `split_conv_scan`, all tensors float32 on the CPU.

    Args of `apply`:
        x: [b, l, 2 h p + 2 g n + h]. conv: [2 g n + h p, width]. conv_bias: [2 g n + h p]. dt_bias, A, D: [h].
        seq: int64 [b, l] or None. sizes: (head size p, groups g).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: Tensor, conv_bias: Tensor, dt_bias: Tensor, A: Tensor, D: Tensor, seq: Tensor | None,
                sizes: tuple[int, int]) -> Tensor:
        size, groups = sizes
        (b, length, _), heads, channels = x.shape, len(A), len(conv_bias)
        state = (channels - heads * size) // (2 * groups)
        ctx.sizes = (ctypes.c_int64 * 8)(b, length, heads, size, groups, state, conv.shape[1], min(CHUNK, length))
        x, weight, conv_bias, dt_bias, A, D = (t.contiguous() for t in (x.transpose(0, 1), conv.t(), conv_bias, dt_bias, A, D))
        pre, dt, y = x.new_empty(b, length, channels), x.new_empty(b, length, heads), x.new_empty(b, length, heads * size)
        out = x.new_empty(length, b, heads * size)
        library().scan_forward(ctx.sizes, *map(_at, (x, weight, conv_bias, dt_bias, A, D, seq, pre, dt, y, out)))
        ctx.save_for_backward(x, weight, dt_bias, A, D, pre, dt, y)
        ctx.seq = seq
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, dt_bias, A, D, pre, dt, y = ctx.saved_tensors
        grad = grad.transpose(0, 1).contiguous()
        d_x = torch.empty_like(x)
        d_weight, d_bias, d_dt_bias, d_A, d_D = (torch.zeros_like(t) for t in (weight, weight[0], dt_bias, A, D))
        library().scan_backward(ctx.sizes, *map(_at, (x, weight, dt_bias, A, D, ctx.seq, pre, dt, y, grad, d_x, d_weight, d_bias,
                                                      d_dt_bias, d_A, d_D)))
        return d_x.transpose(0, 1), d_weight.t(), d_bias, d_dt_bias, d_A, d_D, None, None
