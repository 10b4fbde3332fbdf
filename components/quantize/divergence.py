"""How far a quantised model's predictions are from the source's, on text that calibration has not seen."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, windows: Tensor, batch: int) -> Tensor:
    """int64 [N, T] -> float32 [N, T, V] log-probabilities of the next token."""
    device = next(model.parameters()).device
    return torch.cat([model(rows.to(device), use_cache=False).logits.float().log_softmax(-1).cpu() for rows in windows.split(batch)])


def kl_divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over positions of KL(reference || other) in nats per token; both [N, T, V] log-probabilities."""
    return float((reference.exp() * (reference - other)).sum(-1, dtype=torch.float64).mean())


@torch.no_grad()
def divergence_by_window(teacher: torch.nn.Module, student: torch.nn.Module, windows: Tensor, batch: int) -> Tensor:
    """float64 [N]: mean over the positions of each window of KL(teacher || student) in nats; windows int64 [N, T]."""
    parts = []
    for rows in windows.split(batch):
        one, other = log_probabilities(teacher, rows, batch), log_probabilities(student, rows, batch)
        parts.append((one.exp() * (one - other)).sum(-1, dtype=torch.float64).mean(-1))
    return torch.cat(parts)
