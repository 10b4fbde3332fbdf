"""MXFP8: E4M3 elements in blocks of 32 along the last dimension, one power-of-two (E8M0) scale per block.

Source: OCP Microscaling Formats specification 1.0. The scale is rounded up, 2^ceil(log2(amax / 448)), so that no element
saturates: NVIDIA's choice for training (arXiv 2506.08027), in ModelOpt and in cuBLAS, where the OCP text suggests rounding down.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecraft.numerics.backend import computed_once, kernel
from stagecraft.numerics.rounding import E4M3_MAX, e4m3

BLOCK = 32
_MANTISSA = 0x7FFFFF
_MANTISSA_OF_448 = 0x600000
_SUBNORMAL_POWER = 0x400000


def quantize_dequantize(x: Tensor, *, dim: int = -1) -> Tensor:
    """Round to what MXFP8 can represent: to nearest, ties to even.

    Args:
        x: float32, bfloat16 or float16, any shape; a blocked dimension that is no multiple of 32 is padded with zeros inside.
        dim: -1, or -2 for blocks along the last but one dimension (the tensor as its transpose is read).

    Returns:
        shape, dtype and device of `x`; no gradient. A block with NaN or infinity in it becomes NaN.

    Raises:
        ValueError: for another `dim`.
    """
    if dim == -2:
        return quantize_dequantize(x.transpose(-1, -2)).transpose(-1, -2)
    if dim != -1 or x.dim() < 1:
        raise ValueError(f"no MXFP8 blocks along dimension {dim} of a tensor of shape {tuple(x.shape)}")
    if x.numel() == 0:
        return x.clone()
    columns = x.shape[-1]
    pad = -columns % BLOCK
    padded = F.pad(x, (0, pad)) if pad else x.contiguous()
    y = _rows(padded.view(-1, BLOCK)).view(padded.shape)
    return y[..., :columns].contiguous() if pad else y


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Elements float8_e4m3fn [..., n] and biased exponents uint8 [..., n / 32] (scale = 2^(exponent - 127)); n a multiple of 32."""
    if x.shape[-1] % BLOCK:
        raise ValueError(f"the last dimension of {tuple(x.shape)} is no multiple of {BLOCK}")
    blocks = x.detach().float().unflatten(-1, (-1, BLOCK))
    exponent = _exponent(blocks.abs().amax(-1, keepdim=True))
    elements = (blocks / _power(exponent)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return elements.flatten(-2), exponent.squeeze(-1).to(torch.uint8)


def dequantize(elements: Tensor, exponents: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `quantize`."""
    scale = _power(exponents.to(torch.int32)).unsqueeze(-1)
    return (elements.float().unflatten(-1, (-1, BLOCK)) * scale).flatten(-2).to(dtype)


@kernel(0)
def _rows(x: Tensor) -> Tensor:
    """[N, 32] -> [N, 32]"""
    value = x.float()
    scale = computed_once(_power(_exponent(value.abs().amax(1, keepdim=True))))
    return (e4m3(value / scale) * scale).to(x.dtype)


def _exponent(amax: Tensor) -> Tensor:
    """Biased exponent (int32, 0..254; 255 is NaN) of the smallest power of two at or above amax / 448."""
    bits = amax.view(torch.int32) & 0x7FFFFFFF  # a vectorised maximum may leave NaN with its sign set
    exponent = bits >> 23
    power = exponent - 8 + ((bits & _MANTISSA) > _MANTISSA_OF_448).to(torch.int32)  # 448 = 1.75 * 2^8
    return torch.where(exponent == 255, exponent, power.clamp(min=0))


def _power(exponent: Tensor) -> Tensor:
    """2^(exponent - 127) in float32; exponent 0 is the subnormal 2^-127, 255 is NaN."""
    bits = torch.where(exponent == 0, _SUBNORMAL_POWER, torch.where(exponent == 255, 0x7FC00000, exponent << 23))
    return bits.to(torch.int32).view(torch.float32)
