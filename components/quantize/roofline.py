"""The time of an operator on a GPU by the roofline: as long as its weights take to be read, or its products to be computed.

Williams, Waterman and Patterson 2009. Peaks and bandwidths are the makers' figures for dense products, reached by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.quantize.operators import Operator


@dataclass(frozen=True)
class Gpu:
    """Bytes per second of the memory, and operations per second of dense matrix products by the format of weights and inputs.

    A GPU without FP4 arithmetic reads NVFP4 weights and computes in BF16.
    """

    bandwidth: float
    bf16: float
    fp8: float
    nvfp4: float


GPUS = {
    "h100": Gpu(3.35e12, 989e12, 1979e12, 989e12),   # NVIDIA H100 data sheet, SXM5; halved where it says "with sparsity"
    "h200": Gpu(4.8e12, 989e12, 1979e12, 989e12),    # NVIDIA H200 data sheet, SXM5; likewise
    "b200": Gpu(8e12, 2250e12, 4500e12, 9000e12),    # NVIDIA DGX B200 data sheet: 64 TB/s, 72 PFLOPS FP8, 144 FP4 sparse, by 8 GPUs
}


def seconds(operator: Operator, fmt: str, gpu: str, tokens: int, config: dict[str, Any]) -> float:
    """Seconds of one operator in one step that decodes `tokens` tokens.

    Of the routed experts of a layer as many are read as are chosen by at least one of the tokens, each token choosing
    evenly; each token computes with `num_experts_per_tok` of them.

    Args:
        config: of the checkpoint; `n_routed_experts` and `num_experts_per_tok` are read.
    """
    figures = GPUS[gpu]
    used, read = 1.0, 1.0
    if operator.family == "experts":
        used = config["num_experts_per_tok"] / config["n_routed_experts"]
        read = 1 - (1 - used) ** tokens
    operations = 2 * tokens * operator.numel * used
    return max(operator.bits(fmt) / 8 * read / figures.bandwidth, operations / getattr(figures, fmt))
