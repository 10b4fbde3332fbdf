"""NVFP4: E2M1 elements in blocks of 16, one E4M3 scale per block, one FP32 scale per tensor.

With `amax_t` the tensor's and `amax_b` the block's largest magnitude: tensor scale g = amax_t / (6 * 448), block scale
s = E4M3(amax_b / (6 g)), element code = E2M1(x / (s g)), value = code * s * g. Sources: "Pretraining Large Language Models
with NVFP4" (arXiv 2509.25149, section 2 and appendix C) and NVIDIA ModelOpt's `NVFP4QTensor`, whose bits these are.

Three block shapes:
  rows     1 x 16 along the last dimension: activations and gradients
  columns  16 x 1 along the last but one: the same data read transposed (weight gradients), without transposing it
  tiles    16 x 16: weights, so that a weight and its transpose have the same values

A tensor whose magnitudes are all zero, or so small that g is not representable, becomes zero. NaN or infinity anywhere makes
the whole tensor (with tiles: the whole matrix) NaN rather than something plausible.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stagecraft.numerics import backend
from stagecraft.numerics.backend import computed_once, kernel
from stagecraft.numerics.rounding import E2M1_MAX, E4M3_MAX, E4M3_MIN, e2m1, noise, quotient, seed_tensor

BLOCK = 16
MAX = E2M1_MAX * E4M3_MAX  # 2688: what a block and a tensor scale of one can reach
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def quantize_dequantize(x: Tensor, *, dim: int = -1, two_dimensional: bool = False, stochastic: bool = False,
                        seed: int | Tensor = 0, tensor_amax: Tensor | None = None) -> Tensor:
    """Round to what NVFP4 can represent.

    Args:
        x: float32, bfloat16 or float16, any shape; dimensions that are no multiple of 16 are padded with zeros inside.
        dim: -1 (blocks along the last dimension) or -2 (along the last but one).
        two_dimensional: 16 x 16 tiles over the last two dimensions, one tensor scale per leading index: [E, out, in] gives
            what quantising each of the E matrices alone gives.
        stochastic: round elements stochastically (scales are always rounded to nearest).
        seed: of the stochastic rounding; equal seeds and shapes give equal noise.
        tensor_amax: zero-dimensional; a calibrated largest magnitude in place of the tensor's own; blocks above it saturate.

    Returns:
        shape, dtype and device of `x`; no gradient.

    Raises:
        ValueError: for `dim` other than -1 or -2, tiles with `tensor_amax`, or fewer dimensions than the blocks need.
    """
    if two_dimensional and tensor_amax is not None:
        raise ValueError("tiles take their tensor scale from the matrix itself")
    _check(x, dim, two_dimensional)
    if x.numel() == 0:
        return x.clone()
    if x.is_cuda and backend.name() == "compiled":
        from stagecraft.numerics import nvfp4_triton  # imports Triton, which hosts without a GPU lack

        return nvfp4_triton.quantize_dequantize(x, dim=dim, two_dimensional=two_dimensional, stochastic=stochastic, seed=seed,
                                                tensor_amax=tensor_amax)
    padded, blocks = _blocks(x, dim, two_dimensional)
    start = seed_tensor(seed, x.device) if stochastic else None
    y = _tiles(blocks, start) if two_dimensional else (_rows if dim == -1 else _columns)(blocks, start, tensor_amax)
    y = y.view(padded)
    return y if padded == x.shape else y[tuple(slice(size) for size in x.shape)].contiguous()


def count_saturated(x: Tensor, *, dim: int = -1, two_dimensional: bool = False) -> Tensor:
    """How many elements `quantize_dequantize` cuts to the largest code, as their block's scale was rounded down: int64 []."""
    _check(x, dim, two_dimensional)
    if x.numel() == 0:
        return x.new_zeros((), dtype=torch.int64)
    _, blocks = _blocks(x, dim, two_dimensional)
    magnitude = blocks.float().abs()
    over = (2, 4) if two_dimensional else (1,)
    amax = magnitude.amax(over, keepdim=True)
    tensor_scale = _nonzero(tensor_scale_of(amax.amax((1, 3), keepdim=True) if two_dimensional else amax.amax()))
    return (magnitude / (block_scales(amax, tensor_scale).float() * tensor_scale) > E2M1_MAX).sum()


def _check(x: Tensor, dim: int, two_dimensional: bool) -> None:
    if dim not in (-1, -2) or x.dim() < (2 if two_dimensional or dim == -2 else 1):
        raise ValueError(f"no NVFP4 blocks along dimension {dim} of a tensor of shape {tuple(x.shape)}")


def _blocks(x: Tensor, dim: int, two_dimensional: bool) -> tuple[torch.Size, Tensor]:
    """(shape of `x` padded to whole blocks, that tensor as its kernel takes it)."""
    rows, columns = x.shape[-2] if x.dim() > 1 else 1, x.shape[-1]
    pad_rows = -rows % BLOCK if two_dimensional or dim == -2 else 0
    pad_columns = -columns % BLOCK if two_dimensional or dim == -1 else 0
    padded = F.pad(x, (0, pad_columns, 0, pad_rows)) if pad_rows else F.pad(x, (0, pad_columns)) if pad_columns else x
    padded = padded.contiguous()
    if two_dimensional:
        return padded.shape, padded.view(-1, (rows + pad_rows) // BLOCK, BLOCK, (columns + pad_columns) // BLOCK, BLOCK)
    return padded.shape, padded.view(-1, BLOCK) if dim == -1 else padded.view(-1, BLOCK, columns)


def quantize(x: Tensor, *, scales: Tensor | None = None, tensor_scale: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Pack into the NVFP4 storage format, blocks along the last dimension.

    Args:
        x: floating point, [..., n] with n a multiple of 16.
        scales: [..., n / 16] float8_e4m3fn; chosen elsewhere (least squares), else from each block's largest magnitude.
        tensor_scale: zero-dimensional float32; else the largest magnitude / 2688.

    Returns:
        codes uint8 [..., n / 2] (even elements in the low half), scales float8_e4m3fn [..., n / 16], tensor scale float32 [].

    Raises:
        ValueError: if n is no multiple of 16.
    """
    if x.shape[-1] % BLOCK:
        raise ValueError(f"the last dimension of {tuple(x.shape)} is no multiple of {BLOCK}")
    blocks = x.detach().float().unflatten(-1, (-1, BLOCK))
    if tensor_scale is None:
        tensor_scale = tensor_scale_of(blocks.abs().amax())
    if scales is None:
        scales = block_scales(blocks.abs().amax(-1), _nonzero(tensor_scale))
    ratio = blocks / (scales.float() * _nonzero(tensor_scale)).unsqueeze(-1)
    index = torch.searchsorted(torch.tensor(_VALUES, device=x.device), e2m1(ratio.abs()))
    codes = (index + 8 * (ratio < 0)).to(torch.uint8).flatten(-2)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scales, tensor_scale


def dequantize(codes: Tensor, scales: Tensor, tensor_scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `quantize`: codes uint8 [..., n / 2], scales float8_e4m3fn [..., n / 16], tensor scale float32 [] -> `dtype` [..., n].

    `tensor_scale` may also have leading dimensions that broadcast against `scales` ([E, 1, 1] for a stack of E matrices).
    """
    values = torch.tensor((*_VALUES, 0.0, *(-value for value in _VALUES[1:])), device=codes.device)
    elements = values[torch.stack([codes & 15, codes >> 4], -1).flatten(-2).int()]
    return (elements.unflatten(-1, (-1, BLOCK)) * (scales.float() * tensor_scale).unsqueeze(-1)).flatten(-2).to(dtype)


def round_static(x: Tensor, tensor_scale: Tensor) -> Tensor:
    """`x` [..., n] rounded to NVFP4 in blocks along the last dimension, as a server rounds activations: the tensor scale is given
    and broadcasts against `x`, block scales are those of the largest magnitudes."""
    blocks, tensor_scale = x.float().unflatten(-1, (-1, BLOCK)), tensor_scale.unsqueeze(-1)
    magnitude = blocks.abs()
    unit = block_scales(magnitude.amax(-1, keepdim=True), tensor_scale).float() * tensor_scale
    return (e2m1(magnitude / unit) * unit).copysign(blocks).flatten(-2).to(x.dtype)


def tensor_scale_of(amax: Tensor) -> Tensor:
    """FP32 tensor scale of a largest magnitude (any shape)."""
    return quotient(amax, MAX)


def block_scales(amax: Tensor, tensor_scale: Tensor) -> Tensor:
    """E4M3 block scales (float8_e4m3fn, shape of `amax`) of the blocks' largest magnitudes; empty blocks get 1."""
    scales = amax / (E2M1_MAX * tensor_scale)
    return torch.where(scales == 0, 1.0, scales).clamp(E4M3_MIN, E4M3_MAX).to(torch.float8_e4m3fn)


def _nonzero(tensor_scale: Tensor) -> Tensor:
    return torch.where(tensor_scale == 0, 1.0, tensor_scale)


def _lines(x: Tensor, seed: Tensor | None, tensor_amax: Tensor | None) -> Tensor:
    """[N, 16] -> [N, 16], or [N, 16, C] -> [N, 16, C]"""
    amax = x.float().abs().amax(1, keepdim=True)
    return _round(x, amax, amax.amax() if tensor_amax is None else tensor_amax, seed)


_rows, _columns = kernel(0)(_lines), kernel(0, 2)(_lines)


@kernel(0, 1, 3)
def _tiles(x: Tensor, seed: Tensor | None) -> Tensor:
    """[E, R, 16, C, 16] -> [E, R, 16, C, 16], one tensor scale per E"""
    amax = x.float().abs().amax((2, 4), keepdim=True)
    return _round(x, amax, amax.amax((1, 3), keepdim=True), seed)


def _round(x: Tensor, block_amax: Tensor, tensor_amax: Tensor, seed: Tensor | None) -> Tensor:
    tensor_scale = _nonzero(tensor_scale_of(tensor_amax))
    scale = computed_once(block_scales(block_amax, tensor_scale).float() * tensor_scale)
    value = x.float()
    uniform = None if seed is None else noise(torch.arange(x.numel(), dtype=torch.int32, device=x.device).view(x.shape), seed)
    rounded = e2m1(value.abs() / scale, uniform) * scale
    return torch.where((value < 0) & (rounded != 0), -rounded, rounded).to(x.dtype)  # the packed format reads -0 back as 0
