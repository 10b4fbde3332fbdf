"""Several sequences in one row of tokens, with their boundaries: what every mixer needs to keep them apart.

Context parallelism divides such a row as it divides any other, into chunks of which a rank has an early and a late one, wherever the
boundaries are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from stagecraft.model.attend import Stretch


@dataclass
class Packed(PackedSeqParams):
    """Megatron's packing parameters, which are of the whole row, and what our layers need of this rank's tokens of it.

    Attributes:
        lengths: of the sequences.
        sequence: int64 [t], which sequence each of the rank's tokens is of.
        last: bool [t], it is the last of it.
        padded: [sequences, longest], the layout for PyTorch's attention: a token, or the number of tokens where there is none; None
            where ranks divide the row.
        unpadded: [t], a token's place in the flattened padded layout.
        stretches: of the rank's tokens: (first, end) of tokens next to each other of one sequence, and in the row (first, end) of what
            the last of them sees.
    """

    lengths: Sequence[int] = ()
    sequence: Tensor | None = None
    last: Tensor | None = None
    padded: Tensor | None = None
    unpadded: Tensor | None = None
    stretches: Sequence[Stretch] = ()

    def part(self, rank: int, ranks: int) -> Packed:
        """The same row, of which context-parallel rank `rank` has its tokens.

        Raises:
            ValueError: the row cannot be divided evenly.
        """
        places = own_places(self.total_tokens, rank, ranks).to(self.last.device)
        size, stretches = self.total_tokens // (2 * ranks), []
        for at, chunk in enumerate((rank, 2 * ranks - 1 - rank)):
            begin, end = chunk * size, (chunk + 1) * size
            for first, after in pairwise(accumulate(self.lengths, initial=0)):
                if (low := max(begin, first)) < (high := min(end, after)):
                    stretches.append((at * size + low - begin, at * size + high - begin, first, high))
        return Packed(**_megatrons(self.lengths, self.cu_seqlens_q), lengths=self.lengths, sequence=self.sequence[places],
                      last=self.last[places], stretches=stretches)


def pack(lengths: Sequence[int]) -> Packed:
    """Describe a row of `sum(lengths)` tokens that holds sequences of these lengths one after the other."""
    device = torch.cuda.current_device()
    sizes = torch.tensor(list(lengths), dtype=torch.int32, device=device)
    bounds = torch.nn.functional.pad(sizes.cumsum(0, dtype=torch.int32), (1, 0))
    total, longest = sum(lengths), max(lengths)
    column = torch.arange(longest, device=device)
    inside = column < sizes[:, None]
    last = torch.zeros(total, dtype=torch.bool, device=device)
    last[bounds[1:].long() - 1] = True
    return Packed(**_megatrons(lengths, bounds), lengths=lengths, last=last,
                  sequence=torch.repeat_interleave(torch.arange(len(lengths), device=device), sizes),
                  padded=torch.where(inside, bounds[:-1, None] + column, total), unpadded=inside.flatten().nonzero().flatten(),
                  stretches=[(first, end, first, end) for first, end in pairwise(accumulate(lengths, initial=0))])


def own_places(total: int, rank: int, ranks: int) -> Tensor:
    """The places of a row of `total` tokens that context-parallel rank `rank` has: a chunk, and the one as far from the row's end, so that
    all ranks have as much to attend to.

    Raises:
        ValueError: the row cannot be divided evenly.
    """
    if total % (2 * ranks):
        raise ValueError(f"a row of {total} tokens cannot be divided among {ranks} context-parallel ranks: fill it up to a multiple of "
                         f"{2 * ranks}")
    chunks = torch.arange(total).view(2 * ranks, -1)
    return chunks[[rank, 2 * ranks - 1 - rank]].flatten()


def _megatrons(lengths: Sequence[int], bounds: Tensor) -> dict[str, Any]:
    return {"qkv_format": "thd", "cu_seqlens_q": bounds, "cu_seqlens_kv": bounds, "max_seqlen_q": max(lengths),
            "max_seqlen_kv": max(lengths), "total_tokens": sum(lengths)}
