"""Sequences of token ids -> one packed microbatch."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import TypeVar

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from stagecraft.engine import parallel
from stagecraft.engine.batch import Batch
from stagecraft.model.packing import pack

T = TypeVar("T")


def packed_batch(sequences: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Batch:
    """One row that holds every (ids, loss mask) pair; the label of a token is its successor within the same sequence.

    The last token of a sequence has no successor and is dropped, so a sequence of n tokens takes n - 1 places. Places without a
    loss follow, up to a multiple of what the layout divides a row into; a row of no sequences has that many.
    """
    device, multiple = torch.cuda.current_device(), parallel.layout().multiple
    used = sum(len(ids) - 1 for ids, _ in sequences)
    if left := -used % multiple if sequences else multiple:
        sequences = [*sequences, ([0] * (left + 1), [0] * (left + 1))]
    tokens = _row([ids[:-1] for ids, _ in sequences], np.int64).to(device)
    labels = _row([ids[1:] for ids, _ in sequences], np.int64).to(device)
    mask = _row([mask[1:] for _, mask in sequences], np.float32).to(device)
    return Batch(tokens, labels, mask, pack([len(ids) - 1 for ids, _ in sequences]))


def _row(parts: Sequence[Sequence[float]], dtype: type[np.generic]) -> Tensor:
    """(1, length of all parts together)."""
    return torch.from_numpy(np.concatenate([np.asarray(part, dtype) for part in parts]))[None]


def own_packs(packs: Sequence[Sequence[T]]) -> list[Sequence[T]]:
    """This data-parallel rank's of a step's packs, one at least and as many on every rank: where there are too few, empty ones."""
    ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
    each = max(1, ceil(len(packs) / ranks))
    return [packs[at] if (at := rank + ranks * number) < len(packs) else () for number in range(each)]
