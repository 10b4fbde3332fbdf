"""Rounding to E2M1, E4M3 and E5M2, to nearest or stochastically, and the counter-based noise that stochastic rounding uses.

Everything here works on float32 tensors of any shape and is written so that a compiler fuses it into the caller's loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

E2M1_MAX = 6.0  # largest of {0, 0.5, 1, 1.5, 2, 3, 4, 6}
E4M3_MAX = 448.0
E4M3_MIN = 2.0**-9  # smallest positive, a subnormal
E5M2_MAX = 57344.0


def e2m1(magnitude: Tensor, noise: Tensor | None = None) -> Tensor:
    """Round magnitudes (float32, >= 0) to E2M1, saturating at 6; NaN stays NaN.

    To nearest, ties to the even code; or, with `noise` uniform in [0, 1), up with a probability equal to the distance from
    the lower neighbour, so that the mean over the noise is the magnitude itself (below saturation).
    """
    clipped = magnitude.clamp(max=E2M1_MAX)
    if noise is None:
        # Adding 2^22 leaves a float32 no bits below 0.5, adding 2^23 none below 1, 2^24 none below 2: the addition rounds.
        anchor = torch.where(clipped < 2.0, 2.0**22, torch.where(clipped < 4.0, 2.0**23, 2.0**24))
        return (clipped + anchor) - anchor
    step = torch.where(clipped < 2.0, 0.5, torch.where(clipped < 4.0, 1.0, 2.0))
    steps = clipped / step
    whole = torch.floor(steps)
    return (whole + torch.floor(steps - whole + noise)) * step  # steps + noise itself may round up to the next whole number


def e4m3(value: Tensor) -> Tensor:
    """Round float32 values to E4M3 (no infinities), ties to even, saturating at +-448; float32 out."""
    return value.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float()


def e5m2(value: Tensor) -> Tensor:
    """Round float32 values to E5M2, ties to even, saturating at +-57344; float32 out."""
    return value.clamp(-E5M2_MAX, E5M2_MAX).to(torch.float8_e5m2).float()


def quotient(amax: Tensor, largest: float) -> Tensor:
    """amax / largest in float32, rounded once on every device: PyTorch and TorchInductor multiply by a rounded reciprocal on GPUs."""
    return (amax.double() / largest).float()


def noise(counter: Tensor, seed: Tensor) -> Tensor:
    """Uniform float32 noise in [0, 1) on a grid of 2^-24, a pure function of (counter, seed).

    Counter-based like the Philox generator of the hardware, so the result does not depend on threads, order or history; the
    mixing is the 32-bit finaliser "lowbias32" (two multiplications), cheap enough to be fused into the rounding loop.

    Args:
        counter: int32, any shape, one number per element.
        seed: int32, zero-dimensional.
    """
    bits = counter ^ _mix(seed)
    return ((_mix(bits) >> 8) & 0xFFFFFF).float() * 2.0**-24


def seed_tensor(seed: int | Tensor, device: torch.device) -> Tensor:
    """A seed as the zero-dimensional int32 tensor that kernels take (a Python number would compile one kernel per seed)."""
    if isinstance(seed, Tensor):
        return seed.to(device=device, dtype=torch.int32).reshape(())
    wrapped = (seed + 2**31) % 2**32 - 2**31
    return torch.tensor(wrapped, dtype=torch.int32, device=device)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * 0x7FEB352D
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846CA68B as a signed number
    return bits ^ ((bits >> 16) & 0xFFFF)
