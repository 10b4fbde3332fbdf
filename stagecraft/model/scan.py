"""The Mamba-2 scan as one C++ loop; where that cannot be compiled mamba.py's products do."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from stagecraft.model.loops import library
from stagecraft.native import at

CHUNK = 32  # states kept at a time for the gradient


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
        library().scan_forward(ctx.sizes, *map(at, (x, weight, conv_bias, dt_bias, A, D, seq, pre, dt, y, out)))
        ctx.save_for_backward(x, weight, dt_bias, A, D, pre, dt, y)
        ctx.seq = seq
        return out.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, dt_bias, A, D, pre, dt, y = ctx.saved_tensors
        grad = grad.transpose(0, 1).contiguous()
        d_x = torch.empty_like(x)
        d_weight, d_bias, d_dt_bias, d_A, d_D = (torch.zeros_like(t) for t in (weight, weight[0], dt_bias, A, D))
        library().scan_backward(ctx.sizes, *map(at, (x, weight, dt_bias, A, D, ctx.seq, pre, dt, y, grad, d_x, d_weight, d_bias,
                                                      d_dt_bias, d_A, d_D)))
        return d_x.transpose(0, 1), d_weight.t(), d_bias, d_dt_bias, d_A, d_D, None, None
