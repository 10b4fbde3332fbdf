"""The random Hadamard transform: spreads an outlier over its block of 16 before quantisation, and leaves products unchanged.

H is the 16 x 16 Hadamard matrix / 4 with random signs on its rows, so H H^T = 1 and (x H)(w H)^T = x w^T: transform both
operands of a product along the dimension it sums over, quantise, multiply. One fixed sign vector serves the whole training
run, as in "Pretraining Large Language Models with NVFP4" (arXiv 2509.25149, section 4.2).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 16


def transform(x: Tensor, *, dim: int = -1, seed: int = 0) -> Tensor:
    """Multiply blocks of 16 by H.

    Args:
        x: floating point, any shape; a transformed dimension that is no multiple of 16 is padded with zeros first.
        dim: -1 or -2.
        seed: of the signs.

    Returns:
        dtype of `x`, its shape with dimension `dim` rounded up to a multiple of 16. No gradient.

    Raises:
        ValueError: for another `dim`.
    """
    if dim not in (-1, -2) or x.dim() < -dim:
        raise ValueError(f"no Hadamard transform along dimension {dim} of a tensor of shape {tuple(x.shape)}")
    h = matrix(seed, x.dtype, x.device)
    pad = -x.shape[dim] % BLOCK
    with torch.no_grad():
        if pad:
            x = F.pad(x, (0, pad) if dim == -1 else (0, 0, 0, pad))
        if dim == -1:
            return (x.reshape(-1, BLOCK) @ h).view(x.shape)
        return torch.matmul(h.t(), x.reshape(-1, BLOCK, x.shape[-1])).view(x.shape)


@lru_cache(maxsize=32)
def matrix(seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H: [16, 16], orthogonal; entries +-1/4, exact in every floating-point format."""
    h = torch.ones(1, 1)
    while len(h) < BLOCK:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    signs = torch.randint(0, 2, (BLOCK, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return (h * signs / 4).to(dtype=dtype, device=device)
