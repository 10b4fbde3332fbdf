"""Rounding to FP16, to nearest and stochastically: what a Mamba state cache of 16 bits does to the state at every token."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_NORMAL_EXPONENT = -14
MANTISSA_BITS = 10


def nearest(value: Tensor) -> Tensor:
    """Round float32 to the nearest FP16 number, ties to even, infinity beyond 65,519; float16 out."""
    return value.to(torch.float16)


def stochastic(value: Tensor, words: Tensor) -> Tensor:
    """Round float32 to one of the two neighbouring FP16 numbers, to the one away from zero with a probability equal to the share of
    the gap that the value has come, so that the mean over random words is the value; float16 numbers stay.

    Args:
        value: float32 of any shape.
        words: uniform integers in [0, 2^32), int64 of that shape.

    Returns:
        float16; between 65,504 and the 65,536 that FP16 does not have, the upper neighbour is infinity.
    """
    exponent = (torch.frexp(value).exponent - 1).clamp(min=SMALLEST_NORMAL_EXPONENT)
    step = torch.ldexp(torch.ones_like(value, dtype=torch.float64), exponent - MANTISSA_BITS)
    # In float64 the sum is exact: at most 11 bits before the point, and 32 behind it above 2^-29; what is smaller never rounds up.
    rounded = torch.floor(value.abs().double() / step + words.double() * 2.0**-32) * step
    return torch.where(value.isfinite(), rounded.copysign(value.double()), value.double()).to(torch.float16)
