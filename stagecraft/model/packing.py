"""Several sequences in one row of tokens, with their boundaries: what every mixer needs to keep them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import stagecraft.megatron_cpu  # noqa: F401

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class Packed(PackedSeqParams):
    """Megatron's packing parameters, plus the padded layout [sequences, longest] that our attention computes in."""

    padded: Tensor | None = None  # [sequences, longest] -> token, or the number of tokens where there is none
    unpadded: Tensor | None = None  # [tokens] -> place in the flattened padded layout


def pack(lengths: Sequence[int]) -> Packed:
    """Describe a row of `sum(lengths)` tokens that holds sequences of these lengths one after the other."""
    device = torch.cuda.current_device()
    sizes = torch.tensor(list(lengths), dtype=torch.int32, device=device)
    bounds = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    total, longest = int(bounds[-1]), int(sizes.max())
    column = torch.arange(longest, device=device)
    inside = column < sizes[:, None]
    padded = torch.where(inside, bounds[:-1, None] + column, total)
    return Packed(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest,
                  total_tokens=total, padded=padded, unpadded=inside.flatten().nonzero().flatten())
