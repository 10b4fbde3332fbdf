"""Sequences of token ids -> one packed microbatch."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any, TypeVar

import stagecraft.megatron_cpu  # noqa: F401

import torch
from megatron.core import parallel_state

from stagecraft.engine import parallel
from stagecraft.engine.batch import Batch
from stagecraft.model.packing import pack

T = TypeVar("T")


def packed_batch(sequences: Sequence[tuple[Sequence[int], Sequence[float]]], extra: Any = None) -> Batch:
    """One row that holds every (ids, loss mask) pair; the label of a token is its successor within the same sequence.

    The last token of a sequence has no successor and is dropped, so a sequence of n tokens takes n - 1 places. Places without a
    loss follow, up to a multiple of what the layout divides a row into; a row of no sequences has that many.
    """
    device, multiple = torch.cuda.current_device(), parallel.layout().multiple
    used = sum(len(ids) - 1 for ids, _ in sequences)
    if left := -used % multiple if sequences else multiple:
        sequences = [*sequences, ([0] * (left + 1), [0] * (left + 1))]
    tokens = torch.tensor([[i for ids, _ in sequences for i in ids[:-1]]], device=device)
    labels = torch.tensor([[i for ids, _ in sequences for i in ids[1:]]], device=device)
    mask = torch.tensor([[float(m) for _, mask in sequences for m in mask[1:]]], device=device)
    return Batch(tokens, labels, mask, pack([len(ids) - 1 for ids, _ in sequences]), extra)


def own_packs(packs: Sequence[Sequence[T]]) -> list[Sequence[T]]:
    """This data-parallel rank's of a step's packs, one at least and as many on every rank: where there are too few, empty ones."""
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    each = max(1, ceil(len(packs) / ranks))
    return [packs[at] if (at := rank + ranks * number) < len(packs) else () for number in range(each)]
