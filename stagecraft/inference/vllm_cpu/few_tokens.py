"""A LatentMoE layer for a few tokens, as decoding has them.

Not a defect of results but of time: between model_executor/models/nemotron_h.py:256 (`NemotronHMoE.forward`) and the experts' products
lie the layers of fused_moe/runner that serve parallel ranks, padding and streams; for one token in one process they took two thirds of the
layer's time. Here choice, experts and weighted sum are one call of C++ (`experts.cpp`). Quantised experts, experts divided over ranks,
other types than float32 and larger batches go upstream's way.
"""

from __future__ import annotations

from ctypes import c_float, c_int64

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
from vllm.model_executor.models import nemotron_h

from stagecraft.inference.vllm_cpu.loops import library
from stagecraft.native import at

FEW = 8  # tokens; beyond, products of all tokens of an expert at once are faster
THREADED = 2**21  # multiplications; beyond, with several threads, PyTorch's products are faster than one of them


def experts(logits: Tensor, bias: Tensor, x: Tensor, up: Tensor, down: Tensor, chosen: int, renormalize: bool, scale: float) -> Tensor:
    """What the `chosen` experts of the highest sigmoid(logits) + bias make of each token, weighed by their sigmoids, times `scale`.

    Args:
        logits: [T, E]; bias: [E]; x: [T, d]; up: [E, f, d]; down: [E, d, f]; all float32 and contiguous.

    Returns:
        [T, d]
    """
    y = torch.empty_like(x)
    sizes = (c_int64 * 6)(*logits.shape, chosen, x.shape[1], up.shape[1], renormalize)
    library().few_tokens(sizes, c_float(scale), *map(at, (logits, bias, x, up, down, y)))
    return y


def served(layer: nemotron_h.NemotronHMoE) -> bool:
    """Whether the whole layer is this process's, float32 and as the model has it."""
    runner = layer.experts
    config, method = runner.moe_config, runner.routed_experts.quant_method
    alone = config.tp_size == config.ep_size == config.dp_size == config.pcp_size == 1 and not layer.is_sequence_parallel
    return (alone and type(method) is UnquantizedFusedMoEMethod and not layer.enable_eplb and layer.shared_experts is not None
            and runner.router.num_expert_group == 1 and runner.routed_experts.w13_weight.dtype == torch.float32 and library() is not None)


def mend() -> None:
    upstream = nemotron_h.NemotronHMoE.forward

    def forward(self: nemotron_h.NemotronHMoE, hidden_states: Tensor) -> Tensor:
        if len(hidden_states) > FEW:
            return upstream(self, hidden_states)
        if not hasattr(self, "stagecraft_serves"):
            self.stagecraft_serves = served(self)
        routed, router = self.experts.routed_experts, self.experts.router
        up, down = routed.w13_weight, routed.w2_weight
        work = len(hidden_states) * router.top_k * 2 * up[0].numel()
        if not self.stagecraft_serves or (work > THREADED and torch.get_num_threads() > 1):
            return upstream(self, hidden_states)
        logits = self.gate(hidden_states)[0]
        x = self.fc1_latent_proj(hidden_states)[0] if self.use_latent_moe else hidden_states
        y = experts(logits, self.gate.e_score_correction_bias, x, up, down, router.top_k, router.renormalize, self.routed_scaling_factor)
        if self.use_latent_moe:
            y = self.fc2_latent_proj(y)[0]
        return self.shared_experts(hidden_states) + y

    nemotron_h.NemotronHMoE.forward = forward
