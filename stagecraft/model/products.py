"""Matrix products in the precision a recipe asks for, emulated: what every quantised linear layer computes.

NVFP4 as in "Pretraining LLMs with NVFP4" (arXiv 2509.25149): weights in 16x16 tiles, so that forward and data gradient use the
same values; activations and gradients in blocks of 16 along the summed dimension; stochastic rounding on gradients; random
Hadamard transform on both operands of the weight gradient. MXFP8: blocks of 32 along the summed dimension, round to nearest.
FP8: one scale per tensor, E4M3 for weights and activations, E5M2 for gradients (Micikevicius et al. 2022, arXiv 2209.05433), scaled
by the tensor's own largest value. Products of the rounded values accumulate in the tensors' own dtype: float32 holds these values to
within 2^-24, bfloat16 rounds them once more.
"""

from __future__ import annotations

from ctypes import c_int64
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecraft.model.formats import MXFP8, NVFP4
from stagecraft.model.loops import in_one_call, library
from stagecraft.model.losses import GRADIENTS, LOSSES
from stagecraft.native import at
from stagecraft.numerics import fp8, hadamard, mxfp8, nvfp4


class _Noise:
    """Seeds of stochastic rounding: a function of training step, rank and call, so that a resumed run repeats them."""

    step = rank = call = 0

    def next(self) -> int:
        self.call += 1
        return (self.step * 1_000_003 + self.call) * 65_537 + self.rank


NOISE = _Noise()


def set_noise(step: int, rank: int) -> None:
    """Start the stochastic-rounding noise of training step `step` on rank `rank`, counted over all ranks."""
    NOISE.step, NOISE.rank, NOISE.call = step, rank, 0


def _round(x: Tensor, precision: str, layer: str, role: str, *, dim: int = -1, tiles: bool = False, stochastic: bool = False) -> Tensor:
    if precision == NVFP4:
        y = nvfp4.quantize_dequantize(x, dim=dim, two_dimensional=tiles, stochastic=stochastic, seed=NOISE.next() if stochastic else 0)
    elif precision == MXFP8:
        y = mxfp8.quantize_dequantize(x, dim=dim)
    elif role in GRADIENTS:
        y = fp8.quantize_dequantize_gradient(x)
    else:
        y = fp8.quantize_dequantize_each(x) if x.dim() == 3 else fp8.quantize_dequantize(x)
    if LOSSES.watching:
        LOSSES.see(layer, role, x, y, nvfp4.count_saturated(x, dim=dim, two_dimensional=tiles) if precision == NVFP4 else 0)
    return y


def _forward_operands(x: Tensor, w: Tensor, precision: str | None, layer: str) -> tuple[Tensor, Tensor]:
    if precision is None:
        return x, w
    return _round(x, precision, layer, "activations"), _round(w, precision, layer, "weights", tiles=precision == NVFP4)


def _data_gradient_operands(dy: Tensor, w: Tensor, w_forward: Tensor, precision: str | None, layer: str) -> tuple[Tensor, Tensor]:
    if precision is None:
        return dy, w_forward
    if precision == MXFP8:
        return _round(dy, precision, layer, "gradients"), _round(w, precision, layer, "weights", dim=-2)
    return _round(dy, precision, layer, "gradients", stochastic=precision == NVFP4), w_forward


def _weight_gradient_operands(dy: Tensor, x: Tensor, precision: str | None, layer: str) -> tuple[Tensor, Tensor]:
    """Rows are tokens, the dimension summed over."""
    if precision is None:
        return dy, x
    if precision == NVFP4:
        dy, x = hadamard.transform(dy, dim=-2), hadamard.transform(x, dim=-2)
    return (_round(dy, precision, layer, "gradients of weight gradients", dim=-2, stochastic=precision == NVFP4),
            _round(x, precision, layer, "activations of weight gradients", dim=-2))


class LinearProduct(torch.autograd.Function):
    """y = x w^T for x [..., in], w [out, in]; `layer` is the name under which what rounding loses is counted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, precision: str | None, layer: str = "") -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        xq, wq = _forward_operands(rows, w, precision, layer)
        ctx.precision, ctx.layer = precision, layer
        ctx.save_for_backward(rows, w, wq)
        return (xq @ wq.t()).view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, w, wq = ctx.saved_tensors
        dy_rows = dy.reshape(-1, dy.shape[-1]).contiguous()
        a, b = _data_gradient_operands(dy_rows, w, wq, ctx.precision, ctx.layer)
        dx = (a @ b).view(*dy.shape[:-1], w.shape[1])
        a, b = _weight_gradient_operands(dy_rows, rows, ctx.precision, ctx.layer)
        return dx, a.t() @ b, None, None


def _ends(x: Tensor, w: Tensor, bounds: list[int]) -> Tensor | None:
    """Where the groups end, int32 [experts], if one kernel multiplies them: its rows must be multiples of 16 bytes."""
    if not x.is_cuda or x.dtype != torch.bfloat16 or any(size % 8 for size in w.shape[1:]):
        return None
    if torch.cuda.get_device_capability(x.device) < (9, 0):
        return None
    return torch.tensor(bounds[1:], dtype=torch.int32, device=x.device)


def _grouped(what: str, bounds: list[int], w: Tensor, first: Tensor, second: Tensor, to: Tensor) -> None:
    """One of the three products of `grouped.cpp`; `w` gives the shapes."""
    groups, out, width = w.shape
    getattr(library(), f"grouped_{what}")(c_int64(groups), (c_int64 * len(bounds))(*bounds), c_int64(out), c_int64(width),
                                          *map(at, (first.contiguous(), second.contiguous(), to)))


class GroupedProduct(torch.autograd.Function):
    """y = x w[e]^T for the rows of expert e: x [rows, in] sorted by expert, w [experts, out, in], bounds[e]..bounds[e + 1] its rows.

    With a quantised precision every group's rows must be a multiple of 16 (32 for MXFP8), zero rows included, so that blocks of
    the weight gradient stay within one expert. Weights have one tensor scale per expert, activations one for all rows. In bfloat16 on
    Hopper and later one kernel multiplies all groups; in float32 on a CPU one call does (`grouped.cpp`); elsewhere each has one of its own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bounds: list[int], precision: str | None, layer: str = "") -> Tensor:
        xq, wq = _forward_operands(x, w, precision, layer)
        ctx.precision, ctx.bounds, ctx.layer = precision, bounds, layer
        ctx.save_for_backward(x, w, wq)
        ctx.ends = _ends(xq, wq, bounds)
        if ctx.ends is not None:
            return F.grouped_mm(xq, wq.transpose(1, 2), offs=ctx.ends)
        y = x.new_empty(x.shape[0], w.shape[1])
        if in_one_call(x):
            _grouped("product", bounds, w, xq, wq, y)
            return y
        for expert, (start, end) in enumerate(pairwise(bounds)):
            if start < end:
                torch.mm(xq[start:end], wq[expert].t(), out=y[start:end])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, w, wq = ctx.saved_tensors
        dy = dy.contiguous()
        a, b = _data_gradient_operands(dy, w, wq, ctx.precision, ctx.layer)
        c, d = _weight_gradient_operands(dy, x, ctx.precision, ctx.layer)
        if ctx.ends is not None:
            return F.grouped_mm(a, b, offs=ctx.ends), F.grouped_mm(c.t(), d, offs=ctx.ends), None, None, None
        if in_one_call(x):
            dx, dw = torch.empty_like(x), torch.empty_like(w)
            _grouped("data_gradient", ctx.bounds, w, a, b, dx)
            _grouped("weight_gradient", ctx.bounds, w, c, d, dw)
            return dx, dw, None, None, None
        dx, dw = torch.empty_like(x), torch.zeros_like(w)
        for expert, (start, end) in enumerate(pairwise(ctx.bounds)):
            if start < end:
                torch.mm(a[start:end], b[expert], out=dx[start:end])
                torch.mm(c[start:end].t(), d[start:end], out=dw[expert])
        return dx, dw, None, None, None
