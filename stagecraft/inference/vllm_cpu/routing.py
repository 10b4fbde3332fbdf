"""The choice of experts where there is but one group of them.

Not a defect of results but of time: model_executor/layers/fused_moe/router/cpu_router.py:26 (`_grouped_topk`) chooses groups first, seven
operators that choose the only one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.router import cpu_router


def choose(logits: Tensor, count: int, renormalize: bool, scale: float, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The `count` experts of the highest sigmoid plus bias, each with its sigmoid as weight.

    Args:
        logits: [tokens, experts]; bias: [experts].

    Returns:
        (weights, float32; ids, int32), both [tokens, count]
    """
    scores = logits.float().sigmoid()
    ids = torch.topk(scores + bias, count, dim=-1, sorted=False)[1]
    weights = scores.gather(1, ids)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return weights * scale, ids.to(torch.int32)


def mend() -> None:
    upstream = cpu_router._grouped_topk

    def grouped(gating_output: Tensor, topk: int, renormalize: bool, num_expert_group: int, topk_group: int, scoring_func: str,
                routed_scaling_factor: float, e_score_correction_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        if num_expert_group == topk_group == 1 and scoring_func == "sigmoid" and e_score_correction_bias is not None:
            return choose(gating_output, topk, renormalize, routed_scaling_factor, e_score_correction_bias)
        return upstream(gating_output, topk, renormalize, num_expert_group, topk_group, scoring_func, routed_scaling_factor,
                        e_score_correction_bias)

    cpu_router._grouped_topk = grouped
