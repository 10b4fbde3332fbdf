"""Squared ReLU (So et al. 2021, arXiv 2109.08668): on CPUs a C++ loop in float32, PyTorch's operators elsewhere."""

from __future__ import annotations

from ctypes import c_int64
from typing import Any

import torch
from torch import Tensor

from stagecraft.model.loops import in_one_call, library
from stagecraft.native import at


def squared_relu(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """max(x, 0)^2 for x [..., features], times weight [...] if it is given; dtype of `x`."""
    if in_one_call(x):
        return _SquaredReLU.apply(x, None if weight is None else weight.float())
    y = torch.relu(x).square()
    return y if weight is None else y * weight.unsqueeze(-1).to(y.dtype)


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        x, weight = x.contiguous(), None if weight is None else weight.contiguous()
        ctx.sizes = c_int64(x.numel() // x.shape[-1]), c_int64(x.shape[-1])
        y = torch.empty_like(x)
        library().squared_relu_forward(*ctx.sizes, *map(at, (x, weight, y)))
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), None if weight is None else torch.empty_like(weight)
        library().squared_relu_backward(*ctx.sizes, *map(at, (x, weight, grad.contiguous(), d_x, d_weight)))
        return d_x, d_weight
