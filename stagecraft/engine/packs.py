"""Sequences of token ids -> one packed microbatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stagecraft.engine.trainer import Batch
from stagecraft.model.packing import pack


def packed_batch(sequences: Sequence[tuple[list[int], list[int]]], extra: Any = None, multiple: int = 1) -> Batch:
    """One row that holds every (ids, loss mask) pair; the label of a token is its successor within the same sequence.

    The last token of a sequence has no successor and is dropped, so a sequence of n tokens takes n - 1 places. Places without a
    loss follow, up to a `multiple`: sequence parallelism divides the row.
    """
    device = torch.cuda.current_device()
    if left := -sum(len(ids) - 1 for ids, _ in sequences) % multiple:
        sequences = [*sequences, ([0] * (left + 1), [0] * (left + 1))]
    tokens = torch.tensor([[i for ids, _ in sequences for i in ids[:-1]]], device=device)
    labels = torch.tensor([[i for ids, _ in sequences for i in ids[1:]]], device=device)
    mask = torch.tensor([[float(m) for _, mask in sequences for m in mask[1:]]], device=device)
    return Batch(tokens, labels, mask, pack([len(ids) - 1 for ids, _ in sequences]), extra)
