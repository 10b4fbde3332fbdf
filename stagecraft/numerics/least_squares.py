"""NVFP4 block scales by least squares: of all E4M3 scales, the one that leaves the smallest squared error in its block."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from stagecraft.numerics.backend import kernel
from stagecraft.numerics.nvfp4 import BLOCK, tensor_scale_of
from stagecraft.numerics.rounding import E2M1_MAX, e2m1

CHUNK = 16384  # blocks at a time: 2 MB of elements and 4 MB of losses, which stay in the cache

# Of the 126 positive E4M3 numbers only those near amax / 6 can be best, counted in steps of their code (8 to an octave):
BELOW = 17  # two octaves below, clipping the largest element alone costs (0.75 amax)^2, more than rounding all 16 at amax / 6
ABOVE = 39  # from 4 amax on (log2(24) octaves above) every element becomes zero and nothing changes any more


def best_scales(x: Tensor, tensor_amax: Tensor | None = None) -> Tensor:
    """Search the block scales of a weight, blocks of 16 along the last dimension.

    Every E4M3 number that can be best is tried; of equally good scales the smallest is taken. The same search as ModelOpt's
    `NVFP4MSECalibrator`, whose 126 passes over the tensor are one here.

    Args:
        x: floating point, [..., n] with n a multiple of 16.
        tensor_amax: zero-dimensional; else the largest magnitude of `x`.

    Returns:
        float8_e4m3fn [..., n / 16], for `nvfp4.quantize(x, scales=...)`.
    """
    blocks = x.detach().float().contiguous().view(-1, BLOCK)
    tensor_scale = tensor_scale_of(blocks.abs().amax() if tensor_amax is None else tensor_amax)
    tensor_scale = torch.where(tensor_scale == 0, 1.0, tensor_scale)
    unit = torch.exp2(-torch.frexp(tensor_scale)[1].float().clamp(-126, 126))  # exact, and squares neither overflow nor vanish
    blocks, tensor_scale = blocks * unit, tensor_scale * unit
    values = candidates(x.device)
    index = torch.cat([_search(chunk, values, tensor_scale) for chunk in blocks.split(CHUNK)])
    return (index + 1).to(torch.uint8).view(torch.float8_e4m3fn).view(*x.shape[:-1], -1)


@lru_cache(maxsize=8)
def candidates(device: torch.device) -> Tensor:
    """The 126 positive finite E4M3 numbers, ascending: float32 [126]; entry i has the code i + 1."""
    return torch.arange(1, 127, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn).float()


@kernel(0)
def _search(x: Tensor, values: Tensor, tensor_scale: Tensor) -> Tensor:
    """[N, 16], [126], [] -> index of the best value int64 [N]"""
    magnitude = x.abs()
    start = _code((magnitude.amax(1) / (E2M1_MAX * tensor_scale)).clamp(max=448.0)) - 1 - BELOW
    index = (start.unsqueeze(1) + torch.arange(BELOW + ABOVE, device=x.device)).clamp(0, 125)
    scale = (values[index] * tensor_scale).unsqueeze(2)
    error = magnitude.unsqueeze(1)
    error = (error - e2m1(error / scale) * scale).square()
    for half in (8, 4, 2, 1):  # a fixed order of summation: the same bits from every compiler
        error = error[..., :half] + error[..., half:]
    return index.gather(1, error.squeeze(2).argmin(1, keepdim=True)).squeeze(1)


def _code(value: Tensor) -> Tensor:
    """The code of the largest E4M3 number that is no larger than `value` (float32, 0 to 448): int64."""
    bits = value.view(torch.int32)
    normal = ((bits >> 23) - 120) * 8 + ((bits >> 20) & 7)
    return torch.where(value < 2.0**-6, (value * 512).to(torch.int32), normal).long()
