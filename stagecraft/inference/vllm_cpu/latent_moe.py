"""A LatentMoE layer in float32, in one process: its dense products, and one call for all that is routed.

Not a defect of results but of time: between model_executor/models/nemotron_h.py:256 (`NemotronHMoE.forward`) and the experts' products lie
the layers of fused_moe/runner that serve parallel ranks, padding and streams; for one token they took most of the layer's time. And
torch's `grouped_mm`, on a CPU a product for every expert there is, takes longer than the loop of `experts.cpp` up to about a thousand
tokens. What a token gets there does not depend on its company, either. Quantised layers, experts divided over ranks and other types than
float32 go upstream's way, except in the decoding of whole models (`backbone.py`).
"""

from __future__ import annotations

from ctypes import c_float, c_int64

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.models import nemotron_h

from stagecraft.inference.vllm_cpu.linear import plain, product
from stagecraft.inference.vllm_cpu.loops import library, too_large
from stagecraft.inference.vllm_cpu.quantised import FORMATS
from stagecraft.native import at

MOST = 1024  # tokens; beyond, the products of an expert's tokens are matrices large enough for a library (benchmarks/expert_loop.py)


def experts(logits: Tensor, bias: Tensor, x: Tensor, up: Tensor, down: Tensor, chosen: int, renormalize: bool, scale: float) -> Tensor:
    """What the `chosen` experts of the highest sigmoid(logits) + bias make of each token, weighed by their sigmoids, times `scale`.

    Args:
        logits: [T, E]; bias: [E]; x: [T, d]; up: [E, f, d]; down: [E, d, f]; all float32 and contiguous.

    Returns:
        [T, d]
    """
    y = torch.empty_like(x)
    sizes = (c_int64 * 7)(*logits.shape, chosen, x.shape[1], up.shape[1], renormalize, FORMATS[None])
    library().experts(sizes, c_float(scale), *map(at, (logits, bias, x, up, down, None, None, y)))
    return y


def whole(layer: nemotron_h.NemotronHMoE) -> bool:
    """Whether the whole layer is this process's, its experts float32, and as the model has it."""
    config = layer.experts.moe_config
    alone = config.tp_size == config.ep_size == config.dp_size == config.pcp_size == 1 and not layer.is_sequence_parallel
    return (alone and library() is not None and not layer.enable_eplb and layer.shared_experts is not None
            and layer.experts.routed_experts.w13_weight.dtype == torch.float32 and layer.experts.router.num_expert_group == 1)


def plain_experts(routed: nn.Module) -> bool:
    """Whether experts are unquantised."""
    return type(routed.quant_method) is UnquantizedFusedMoEMethod


def served(layer: nemotron_h.NemotronHMoE) -> bool:
    """Whether the whole layer is this process's, unquantised float32, and as the model has it."""
    linear = (module for module in layer.modules() if isinstance(module, LinearBase))
    return whole(layer) and plain_experts(layer.experts.routed_experts) and all(map(plain, linear))


def mend() -> None:
    upstream = nemotron_h.NemotronHMoE.forward

    def forward(self: nemotron_h.NemotronHMoE, hidden_states: Tensor) -> Tensor:
        if not hasattr(self, "stagecraft_serves"):
            self.stagecraft_serves = served(self)
        routed, router, tokens = self.experts.routed_experts, self.experts.router, len(hidden_states)
        up, down = routed.w13_weight, routed.w2_weight
        if not self.stagecraft_serves or tokens > MOST or too_large(tokens * router.top_k * 2 * up[0].numel()):
            return upstream(self, hidden_states)
        logits = product(self.gate, hidden_states)
        x = product(self.fc1_latent_proj, hidden_states) if self.use_latent_moe else hidden_states
        y = experts(logits, self.gate.e_score_correction_bias, x, up, down, router.top_k, router.renormalize, self.routed_scaling_factor)
        if self.use_latent_moe:
            y = product(self.fc2_latent_proj, y)
        shared = product(self.shared_experts.up_proj, hidden_states).relu_().square_()
        return product(self.shared_experts.down_proj, shared).add_(y)

    nemotron_h.NemotronHMoE.forward = forward
