"""What is asked of logits whose vocabulary tensor parallelism divides: the loss, the entropy, the likeliest token."""

from __future__ import annotations

from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from stagecraft.model.cross_entropy import cross_entropy


def losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy in nats, float32 [rows], of logits [rows, this rank's classes] and labels int64 [rows].

    Where ranks divide the classes, the logits are overwritten.
    """
    if parallel_state.get_tensor_model_parallel_world_size() == 1:
        return cross_entropy(logits, labels)
    return vocab_parallel_cross_entropy(logits.float(), labels)


@torch.no_grad()
def entropies(logits: Tensor) -> Tensor:
    """Of the distributions of logits [rows, this rank's classes], in nats, float32 [rows]; no gradient."""
    logits = logits.float()
    total = logits.logsumexp(-1)
    if (group := parallel_state.get_tensor_model_parallel_group()).size() > 1:
        total = _of_all(total, group).logsumexp(0)
    mean = ((logits - total.unsqueeze(-1)).exp_() * logits).sum(-1)
    if group.size() > 1:
        dist.all_reduce(mean, group=group)
    return total - mean


@torch.no_grad()
def likeliest(logits: Tensor) -> Tensor:
    """The classes with the greatest of logits [rows, this rank's classes], int64 [rows]."""
    value, place = logits.float().max(-1)
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size() == 1:
        return place
    best = _of_all(value, group).argmax(0)
    return _of_all(place + group.rank() * logits.shape[-1], group).gather(0, best.unsqueeze(0)).squeeze(0)


def _of_all(values: Tensor, group: Any) -> Tensor:
    """[...] of every rank -> [ranks, ...]"""
    found = [torch.empty_like(values) for _ in range(group.size())]
    dist.all_gather(found, values, group=group)
    return torch.stack(found)
