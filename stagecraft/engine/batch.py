"""A microbatch, and what of it a context-parallel rank has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from stagecraft.model.packing import Packed, own_places


@dataclass
class Batch:
    """One microbatch: tokens, labels, loss_mask [b, s]; `packed` where a row holds several sequences; `extra` for other losses.

    The ranks of a context-parallel group get the same rows, and each computes its part of them. Its part of `extra` is
    `extra.part(places)`, where `places` are the rank's own places in a row, int64 [t].

    The first context-parallel rank reports the whole row's target count: fractional weights, such as those of a conversation's mean, would
    make each rank's share non-integer, and megatron-core divides by integers. `counted` is this count; None: the sum of `loss_mask`.
    """

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    packed: Packed | None = None
    extra: Any = None
    counted: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """How many targets this rank counts."""
        return self.loss_mask.sum() if self.counted is None else self.counted

    def part(self) -> Batch:
        """This context-parallel rank's part: two chunks of every row, an early and a late one.

        Raises:
            ValueError: the rows cannot be divided evenly.
        """
        group = parallel_state.get_context_parallel_group()
        if group.size() == 1:
            return self
        places = own_places(self.tokens.shape[1], group.rank(), group.size()).to(self.tokens.device)
        return Batch(*(each[:, places] for each in (self.tokens, self.labels, self.loss_mask)),
                     self.packed and self.packed.part(group.rank(), group.size()), self.extra and self.extra.part(places),
                     self.targets * (group.rank() == 0))


def whole_row(values: Tensor) -> Tensor:
    """Values for a context-parallel rank's places of a row, [t], of all its ranks -> those for the row, on every rank."""
    group = parallel_state.get_context_parallel_group()
    if group.size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(group.size())]
    dist.all_gather(parts, values.contiguous(), group=group)
    row = values.new_empty(len(values) * group.size())
    for rank, part in enumerate(parts):
        row[own_places(len(row), rank, group.size()).to(row.device)] = part
    return row
