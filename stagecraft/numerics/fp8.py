"""FP8 with one FP32 scale per tensor: E4M3, scale = amax / 448, elements rounded to nearest, ties to even; gradients in E5M2."""

from __future__ import annotations

import torch
from torch import Tensor

from stagecraft.numerics.backend import kernel
from stagecraft.numerics.rounding import E4M3_MAX, E5M2_MAX, e4m3, e5m2, quotient


def quantize_dequantize(x: Tensor, *, amax: Tensor | None = None) -> Tensor:
    """Round to what FP8 with one scale per tensor can represent.

    Args:
        x: float32, bfloat16 or float16, any shape.
        amax: zero-dimensional; a calibrated largest magnitude in place of the tensor's own; larger elements saturate.

    Returns:
        shape, dtype and device of `x`; no gradient. All zeros stay zero.
    """
    if x.numel() == 0:
        return x.clone()
    return _flat(x.contiguous().view(-1), amax).view(x.shape)


def quantize(x: Tensor, *, amax: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Elements float8_e4m3fn (shape of `x`) and scale float32 []: value = element * scale."""
    value = x.detach().float()
    scale = _scale(value.abs().amax() if amax is None else amax.float())
    return (value / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def dequantize(elements: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `quantize`."""
    return (elements.float() * scale).to(dtype)


def round_static(x: Tensor, scale: Tensor) -> Tensor:
    """`x` rounded to E4M3 in units of `scale`, which broadcasts against it; shape and dtype of `x`."""
    return (e4m3(x.float() / scale) * scale).to(x.dtype)


def quantize_dequantize_gradient(x: Tensor) -> Tensor:
    """Round to E5M2 in units of amax / 57344, as gradients are in the "hybrid" format; like `quantize_dequantize` else."""
    if x.numel() == 0:
        return x.clone()
    return _flat_gradient(x.contiguous().view(-1)).view(x.shape)


def quantize_dequantize_each(x: Tensor) -> Tensor:
    """`quantize_dequantize` of every matrix of a stack [n, rows, columns], each with its own scale."""
    if x.numel() == 0:
        return x.clone()
    return round_static(x, _scale(x.abs().amax((-2, -1), keepdim=True)))


@kernel(0)
def _flat(x: Tensor, amax: Tensor | None) -> Tensor:
    """[N] -> [N]"""
    value = x.float()
    scale = _scale(value.abs().amax() if amax is None else amax)
    return (e4m3(value / scale) * scale).to(x.dtype)


@kernel(0)
def _flat_gradient(x: Tensor) -> Tensor:
    """[N] -> [N]"""
    value = x.float()
    scale = _scale(value.abs().amax(), E5M2_MAX)
    return (e5m2(value / scale) * scale).to(x.dtype)


def _scale(amax: Tensor, largest: float = E4M3_MAX) -> Tensor:
    scale = quotient(amax, largest)
    return torch.where(scale == 0, 1.0, scale)
