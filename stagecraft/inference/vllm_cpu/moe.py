"""Experts without a gate (squared ReLU, as in Nemotron-H) on a CPU.

Upstream: model_executor/layers/fused_moe/config.py:1402 raises NotImplementedError for `is_act_and_mul=False` off CUDA, XPU and
ROCm, and experts/cpu_moe.py has gated kernels only. The check is the last statement of `FusedMoEConfig.__post_init__`, so
everything before it has happened when it raises.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.layers.fused_moe import config
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.fused_moe.oracle import unquantized


class SquaredReluExperts(CPUUnquantizedExperts):
    """y = sum over the chosen experts e of share_e * down_e @ relu(up_e @ x)^2, in the weights' dtype."""

    @staticmethod
    def is_supported_config(cls: type, moe_config: config.FusedMoEConfig, weight_key: object, activation_key: object,
                            activation_format: object) -> tuple[bool, str | None]:
        if moe_config.activation != MoEActivation.RELU2_NO_MUL:
            return False, "serves squared ReLU without a gate only"
        return True, None

    @staticmethod
    def _supports_no_act_and_mul() -> bool:
        return True

    @staticmethod
    def _supports_activation(activation: MoEActivation) -> bool:
        return activation == MoEActivation.RELU2_NO_MUL

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Nothing to repack: the matrix products read the weights as they lie."""

    def round_input(self, rows: Tensor, expert: Tensor) -> Tensor:
        """What a quantised checkpoint does to the inputs of the up projections; `expert` [rows] says whose input a row is."""
        return rows

    def round_hidden(self, rows: Tensor, expert: Tensor) -> Tensor:
        """What a quantised checkpoint does to the inputs of the down projections."""
        return rows

    def apply(self, output: Tensor, hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor, topk_ids: Tensor,
              activation: MoEActivation, global_num_experts: int, expert_map: Tensor | None, a1q_scale: Tensor | None,
              a2_scale: Tensor | None, workspace13: Tensor, workspace2: Tensor, expert_tokens_meta: object,
              apply_router_weight_on_input: bool) -> None:
        """output [T, d]; hidden_states [T, d]; w1 [E, f, d]; w2 [E, d, f]; topk_weights, topk_ids [T, k]."""
        if len(hidden_states) == 1:
            by_token = self._one_token(hidden_states, w1, w2, topk_ids[0]).unsqueeze(0)
        else:
            by_token = self._many_tokens(hidden_states, w1, w2, topk_ids)
        if apply_router_weight_on_input:
            torch.sum(by_token, 1, out=output)
        else:
            torch.sum(by_token * topk_weights.to(by_token.dtype).unsqueeze(-1), 1, out=output)

    def _one_token(self, hidden_states: Tensor, w1: Tensor, w2: Tensor, expert: Tensor) -> Tensor:
        """[k, d]: a token's experts one by one, for grouped products look at every expert there is."""
        chosen = expert.tolist()
        rows = self.round_input(hidden_states.expand(len(chosen), -1), expert)
        hidden = torch.cat([torch.nn.functional.linear(row, w1[e]) for row, e in zip(rows.split(1), chosen)]).relu_().square_()
        return torch.cat([torch.nn.functional.linear(row, w2[e]) for row, e in zip(self.round_hidden(hidden, expert).split(1), chosen)])

    def _many_tokens(self, hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_ids: Tensor) -> Tensor:
        """[T, k, d]: rows sorted by expert, so that each expert's product is one."""
        choices = topk_ids.shape[1]
        flat = topk_ids.reshape(-1)
        order = torch.argsort(flat, stable=True)
        ends = torch.bincount(flat, minlength=w1.shape[0]).cumsum(0).to(torch.int32)
        expert = flat[order]
        rows = self.round_input(hidden_states.index_select(0, order // choices), expert)
        hidden = torch.nn.functional.grouped_mm(rows, w1.transpose(1, 2), offs=ends).relu_().square_()
        sorted_rows = torch.nn.functional.grouped_mm(self.round_hidden(hidden, expert), w2.transpose(1, 2), offs=ends)
        by_token = torch.empty_like(sorted_rows)
        by_token[order] = sorted_rows
        return by_token.view(-1, choices, w2.shape[1])


def mend() -> None:
    upstream_check, upstream_kernels = config.FusedMoEConfig.__post_init__, unquantized.backend_to_kernel_cls

    def check(self: config.FusedMoEConfig) -> None:
        try:
            upstream_check(self)
        except NotImplementedError as error:
            if "is_act_and_mul=False" not in str(error):
                raise

    def kernels(backend: unquantized.UnquantizedMoeBackend) -> list[type]:
        ours = [SquaredReluExperts] if backend == unquantized.UnquantizedMoeBackend.CPU else []
        return [*ours, *upstream_kernels(backend)]

    config.FusedMoEConfig.__post_init__ = check
    unquantized.backend_to_kernel_cls = kernels
