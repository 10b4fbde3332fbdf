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

    The ranks of a context-parallel group get the same ones, and each computes its part of the rows: of `extra` what `extra.part(places)`
    gives for the places of a row that are its own, int64 [t].

    A row's targets are counted whole, on the first of them: of weights such as a conversation's mean a rank's share is no whole number, and
    megatron-core divides gradients by whole numbers. `counted` is that sum of `loss_mask`; None: of these rows.
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
        """This context-parallel rank's: two chunks of every row, an early and a late one.

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
