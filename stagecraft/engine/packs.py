"""Sequences of token ids -> one packed microbatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stagecraft.engine.trainer import Batch
from stagecraft.model.packing import pack


def packed_batch(sequences: Sequence[tuple[list[int], list[int]]], extra: Any = None) -> Batch:
    """One row that holds every (ids, loss mask) pair; the label of a token is its successor within the same sequence.

    The last token of a sequence has no successor and is dropped, so a sequence of n tokens takes n - 1 places.
    """
    device = torch.cuda.current_device()
    tokens = torch.tensor([[i for ids, _ in sequences for i in ids[:-1]]], device=device)
    labels = torch.tensor([[i for ids, _ in sequences for i in ids[1:]]], device=device)
    mask = torch.tensor([[float(m) for _, mask in sequences for m in mask[1:]]], device=device)
    return Batch(tokens, labels, mask, pack([len(ids) - 1 for ids, _ in sequences]), extra)
