"""Philox4x32, the counter-based random bits of GPU kernels, with any number of rounds (Salmon et al., SC 2011, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1, added to the key after every round
MASK = 0xFFFFFFFF


def philox4x32(counter: Tensor, key: tuple[int, int], rounds: int) -> Tensor:
    """Random words, a pure function of counter and key.

    Args:
        counter: int64 [..., 4], each in [0, 2^32).
        key: two words in [0, 2^32).
        rounds: 10 is the standard, 7 the least that passes BigCrush, 5 what Nemotron 3 Super's state cache uses.

    Returns:
        int64 [..., 4], each in [0, 2^32).
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(rounds):
        # int64 wraps, so the bits are those of the unsigned product.
        first, second = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (second >> 32 & MASK) ^ c1 ^ k0, second & MASK, (first >> 32 & MASK) ^ c3 ^ k1, first & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3], -1)


def random_words(offset: Tensor, seed: int, rounds: int) -> Tensor:
    """One word per element: the first of Philox at counter (offset, 0, 0, 0) and key (low, high word of seed), as Triton's `randint`.

    Args:
        offset: int64 of any shape, in [0, 2^32).
        seed: in [0, 2^64).

    Returns:
        int64 in [0, 2^32), the shape of `offset`.
    """
    zero = torch.zeros_like(offset)
    return philox4x32(torch.stack([offset, zero, zero, zero], -1), (seed & MASK, seed >> 32 & MASK), rounds)[..., 0]
