"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): on CPUs a C++ loop in float32, PyTorch's operators elsewhere."""

from __future__ import annotations

from ctypes import c_float, c_int64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecraft.model.loops import library
from stagecraft.native import at


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, groups: int = 1) -> Tensor:
    """x [..., features] over the root of the mean square of each of `groups` groups of features, times weight [features]; dtype of `x`."""
    if x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and library() is not None:
        return _RMSNorm.apply(x, weight, epsilon, groups)
    if groups == 1:
        return F.rms_norm(x, weight.shape, weight, epsilon)
    size = len(weight) // groups
    return (F.rms_norm(x.float().unflatten(-1, (groups, size)), (size,), None, epsilon).flatten(-2) * weight.float()).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, groups: int) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.sizes = [c_int64(size) for size in (x.numel() // len(weight), groups, len(weight) // groups)]
        y, scale = torch.empty_like(x), x.new_empty(x.numel() // len(weight), groups)
        library().rms_norm_forward(*ctx.sizes, c_float(epsilon), *map(at, (x, weight, y, scale)))
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        d_x, d_weight = torch.empty_like(x), torch.zeros_like(weight)
        library().rms_norm_backward(*ctx.sizes, *map(at, (x, weight, scale, grad.contiguous(), d_x, d_weight)))
        return d_x, d_weight, None, None
