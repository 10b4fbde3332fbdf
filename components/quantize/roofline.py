"""The time of an operator on a GPU by the roofline: as long as its weights take to be read, or its products to be computed.

Williams, Waterman and Patterson 2009. Peaks and bandwidths are the makers' figures for dense products, the planner's, reached by nobody.
"""

from __future__ import annotations

from typing import Any

from components.quantize.operators import Operator
from stagecraft.planning.hardware import gpu as machine


def seconds(operator: Operator, fmt: str, gpu: str, tokens: int, config: dict[str, Any]) -> float:
    """Seconds of one operator in one step that decodes `tokens` tokens.

    Of the routed experts of a layer as many are read as are chosen by at least one of the tokens, each token choosing
    evenly; each token computes with `num_experts_per_tok` of them. A GPU without FP4 arithmetic reads NVFP4 weights and
    computes in BF16.

    Args:
        config: of the checkpoint; `n_routed_experts` and `num_experts_per_tok` are read.
    """
    figures = machine(gpu)
    used, read = 1.0, 1.0
    if operator.family == "experts":
        used = config["num_experts_per_tok"] / config["n_routed_experts"]
        read = 1 - (1 - used) ** tokens
    operations = 2 * tokens * operator.numel * used
    return max(operator.bits(fmt) / 8 * read / figures.bandwidth, operations / figures.peak.get(fmt, figures.peak["bfloat16"]))
