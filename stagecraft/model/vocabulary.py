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


def losses_and_entropies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """`losses`, and of the distributions the entropies in nats, float32 [rows], which have no gradient."""
    group, values = parallel_state.get_tensor_model_parallel_group(), logits.detach().float()
    if group.size() == 1:
        loss = losses(logits, labels)
        total = values.gather(-1, labels.unsqueeze(-1)) + loss.detach().unsqueeze(-1)
        return loss, total.squeeze(-1) - torch.linalg.vecdot((values - total).exp_(), values)
    total = _of_all(values.logsumexp(-1), group).logsumexp(0)
    mean = torch.linalg.vecdot((values - total.unsqueeze(-1)).exp_(), values)
    dist.all_reduce(mean, group=group)
    return losses(logits, labels), total - mean


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
