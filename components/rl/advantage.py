"""Group-relative advantages: how much better a completion did than the others of its prompt."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # a group whose rewards vary by no more has no variance


def group_advantages(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of the *other* completions of the prompt, over the group's standard deviation.

    The leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740) with the group normalisation of GRPO (Shao et al. 2024,
    arXiv 2402.03300, section 4.1). A group without variance teaches nothing: its advantages are zero.

    Args:
        rewards_PG: float32 [prompts, generations], at least two generations.

    Returns:
        [prompts, generations].
    """
    generations = rewards_PG.shape[1]
    total = rewards_PG.sum(1, keepdim=True)
    baseline = (total - rewards_PG) / (generations - 1)
    spread = rewards_PG.std(1, keepdim=True)
    return torch.where(spread > EPSILON, (rewards_PG - baseline) / (spread + EPSILON), 0.0)
