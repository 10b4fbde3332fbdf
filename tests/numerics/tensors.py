"""Hypothesis strategies for tensors that quantisers find hard, and a comparison that tells -0 from 0."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("normal", "heavy", "zeros", "ties", "scale ties", "subnormal scales", "tiny", "huge", "one spike")


def make(kind: str, dtype: torch.dtype, rows: int, columns: int, seed: int) -> Tensor:
    """[rows, columns]; `columns` a multiple of 16."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator)
    if kind == "heavy":
        x = x * torch.randn(rows, columns, generator=generator).exp() ** 2
    elif kind == "zeros":
        x[:, ::3] = 0
        x[: rows // 2] = 0
        x[-1, -1] = 1
    elif kind in ("ties", "scale ties"):
        # With a largest magnitude of 2688 the tensor's scale is 1 and every quotient below is exact.
        unit = 2.0 ** torch.randint(-4, 8, (rows, columns // 16, 1), generator=generator)
        blocks = torch.randint(-24, 25, (rows, columns // 16, 16), generator=generator) * 0.25 * unit
        # 17/16, 19/16, ... lie between two values of E4M3.
        between = (17 + 2 * torch.randint(0, 8, unit.shape, generator=generator)) / 16 if kind == "scale ties" else 1.0
        blocks[..., :1] = 6.0 * between * unit
        blocks[-1, -1, 0] = 2688.0
        x = blocks.flatten(1)
    elif kind == "subnormal scales":
        x = x * torch.logspace(0, -4, rows).unsqueeze(1)
        x[0, 0] = 1000.0
    elif kind == "tiny":
        x = x * 1e-36
    elif kind == "huge":
        x = x * 1e36
    elif kind == "one spike":
        x = torch.zeros(rows, columns)
        x[int(torch.randint(rows, (), generator=generator)), int(torch.randint(columns, (), generator=generator))] = -3.7
    return x.to(dtype)


def tensors() -> st.SearchStrategy[Tensor]:
    return st.builds(make, st.sampled_from(KINDS), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(1, 20),
                     st.integers(1, 6).map(lambda blocks: 16 * blocks), st.integers(0, 2**31))


def bits(x: Tensor) -> Tensor:
    """The bit patterns: equal only if every bit is, the sign of zero included."""
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)
