"""NVFP4 as one Triton kernel for GPUs without the format: the bits of stagecraft.numerics.nvfp4, which calls this for tensors on a GPU.

Divisions are IEEE (Triton's `/` is not) and the E4M3 block scale is rounded by arithmetic, as GPUs before Hopper lack that type.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stagecraft.numerics.rounding import E4M3_MAX, seed_tensor

BLOCK = 16
_ROWS, _COLUMNS = 16, 128  # of the tile that one program rounds


@torch.no_grad()
def quantize_dequantize(x: Tensor, *, dim: int, two_dimensional: bool, stochastic: bool, seed: int | Tensor,
                        tensor_amax: Tensor | None) -> Tensor:
    """As `nvfp4.quantize_dequantize`, for a tensor with at least one element; the arguments are checked there."""
    x = x.contiguous()
    rows, columns = x.shape[-2] if x.dim() > 1 else 1, x.shape[-1]
    matrices = x.numel() // (rows * columns)
    tall = BLOCK if two_dimensional or dim == -2 else 1
    wide = BLOCK if two_dimensional or dim == -1 else 1
    if two_dimensional:
        amax = x.view(matrices, -1).abs().amax(1).float()
    else:
        amax = x.abs().amax().float() if tensor_amax is None else tensor_amax.float()
        if tall == 1:
            rows, matrices = rows * matrices, 1
    y = torch.empty_like(x)
    grid = (triton.cdiv(rows, _ROWS), triton.cdiv(columns, _COLUMNS), matrices)
    _kernel[grid](x, y, amax.contiguous(), seed_tensor(seed, x.device), rows, columns, triton.cdiv(rows, tall) * tall,
                  triton.cdiv(columns, wide) * wide, int(two_dimensional), TALL=tall, WIDE=wide, STOCHASTIC=stochastic,
                  TILE_ROWS=_ROWS, TILE_COLUMNS=_COLUMNS, E4M3=E4M3_MAX)
    return y


@triton.jit
def _mix(bits):  # noqa: ANN001
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * -0x7B935975
    return bits ^ ((bits >> 16) & 0xFFFF)


@triton.jit
def _e4m3(value):  # noqa: ANN001
    """Values in [2^-9, 448] to the nearest multiple of the step at their exponent: adding 2^23 steps leaves no bits below one."""
    exponent = (value.to(tl.int32, bitcast=True) >> 23) & 0xFF
    step = tl.where(exponent - 3 > 118, exponent - 3, 118)  # biased; 2^-9 is the smallest
    anchor = ((step + 23) << 23).to(tl.float32, bitcast=True)
    return (value + anchor) - anchor


@triton.jit
def _kernel(x, y, amax, seed, rows, columns, padded_rows, padded_columns, amax_stride, TALL: tl.constexpr, WIDE: tl.constexpr,  # noqa: ANN001
            STOCHASTIC: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, E4M3: tl.constexpr):
    matrix = tl.program_id(2)
    row = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)[:, None]
    column = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)[None, :]
    inside = (row < rows) & (column < columns)
    at = (matrix.to(tl.int64) * rows + row) * columns + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)

    tensor_scale = tl.div_rn(tl.load(amax + matrix * amax_stride), 6.0 * E4M3)
    tensor_scale = tl.where(tensor_scale == 0.0, 1.0, tensor_scale)
    blocks = tl.reshape(tl.abs(value), (TILE_ROWS // TALL, TALL, TILE_COLUMNS // WIDE, WIDE))
    largest = tl.max(tl.max(blocks, axis=3), axis=1)
    wanted = tl.div_rn(largest, tl.zeros_like(largest) + 6.0 * tensor_scale)
    wanted = tl.where(wanted == 0.0, 1.0, wanted)
    wanted = tl.minimum(tl.maximum(wanted, 0.001953125), E4M3)
    scale = _e4m3(wanted) * tensor_scale
    broken = tl.max(tl.max((blocks != blocks).to(tl.int32), axis=3), axis=1) > 0  # the maximum above may have passed over NaN
    scale = tl.where(broken, float("nan"), scale)  # that of a broken tensor is NaN by now
    scale = tl.broadcast_to(scale[:, None, :, None], (TILE_ROWS // TALL, TALL, TILE_COLUMNS // WIDE, WIDE))
    scale = tl.reshape(scale, (TILE_ROWS, TILE_COLUMNS))

    magnitude = tl.div_rn(tl.abs(value), scale)
    magnitude = tl.where(magnitude > 6.0, 6.0, magnitude)
    if STOCHASTIC:
        counter = ((matrix * padded_rows + row) * padded_columns + column).to(tl.int32)
        uniform = ((_mix(counter ^ _mix(tl.load(seed))) >> 8) & 0xFFFFFF).to(tl.float32) * 5.9604644775390625e-08  # 2^-24
        step = tl.where(magnitude < 2.0, 0.5, tl.where(magnitude < 4.0, 1.0, 2.0))
        steps = magnitude / step  # exact: powers of two
        whole = tl.floor(steps)
        rounded = (whole + tl.floor(steps - whole + uniform)) * step
    else:
        anchor = tl.where(magnitude < 2.0, 4194304.0, tl.where(magnitude < 4.0, 8388608.0, 16777216.0))
        rounded = (magnitude + anchor) - anchor
    rounded = rounded * scale
    signed = tl.where((value < 0.0) & (rounded != 0.0), -rounded, rounded)
    tl.store(y + at, signed.to(y.dtype.element_ty), mask=inside)
