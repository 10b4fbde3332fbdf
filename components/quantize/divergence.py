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
    return float(_by_position(reference, other).mean())


def divergence_from(reference: Tensor, model: torch.nn.Module, windows: Tensor, batch: int) -> float:
    """The same of the predictions of `model` on int64 [N, T], made and compared a batch at a time: all of them are 137 GB at 120B."""
    parts = zip(reference.split(batch), windows.split(batch))
    return sum(len(rows) * kl_divergence(known, log_probabilities(model, rows, batch)) for known, rows in parts) / len(windows)


@torch.no_grad()
def divergence_by_window(teacher: torch.nn.Module, student: torch.nn.Module, windows: Tensor, batch: int) -> Tensor:
    """float64 [N]: mean over the positions of each window of KL(teacher || student) in nats; windows int64 [N, T]."""
    return torch.cat([_by_position(*(log_probabilities(model, rows, batch) for model in (teacher, student))).mean(-1)
                      for rows in windows.split(batch)])


def _by_position(reference: Tensor, other: Tensor) -> Tensor:
    """float64 [N, T]: KL(reference || other) in nats at each position."""
    return (reference.exp() * (reference - other)).sum(-1, dtype=torch.float64)
