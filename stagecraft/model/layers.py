"""Building blocks of the layer spec that need no Transformer Engine: norm, latent projection, quantised linear layers.

They are also used where it is installed but its layers do not serve, as when nothing is quantised (`runs_transformer_engine` says when).
"""

from __future__ import annotations

from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region, gather_from_sequence_parallel_region
from torch import Tensor, nn

from stagecraft.model.classes import class_of
from stagecraft.model.norm import rms_norm
from stagecraft.model.precision import format_of
from stagecraft.model.products import LinearProduct


class InFormat:
    """Has the format that megatron-core's call of `finish_init` with the layer's recipe entry gives it."""

    precision: str | None = None
    layer_class = ""

    def finish_init(self, quant_config: Any) -> None:
        if quant_config is not None:
            self.precision, self.layer_class = format_of(quant_config), class_of(quant_config.match_input.module_path) or ""


class RMSNorm(nn.Module):
    """RMSNorm that sequence parallelism knows about: its gradient is summed over the tensor-parallel ranks."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **unused: Any):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=torch.cuda.current_device()))
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class DuplicatedLinear(InFormat, nn.Module):
    """The latent projections of LatentMoE: the same weight on every tensor-parallel rank."""

    def __init__(self, input_size: int, output_size: int, *, parallel_mode: str, config: Any, init_method: Any, bias: bool = False,
                 name: str | None = None, **unused: Any):
        super().__init__()
        if parallel_mode != "duplicated" or bias:
            raise NotImplementedError("latent projections are duplicated and have no bias")
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=config.params_dtype, device=torch.cuda.current_device()))
        if config.perform_initialization:
            init_method(self.weight)
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        if self.precision is None or not self.training:
            return F.linear(x, self.weight), None
        return LinearProduct.apply(x, self.weight, self.precision, self.layer_class), None

    def backward_dw(self) -> None:
        """The weight gradient is not delayed here."""


class _Quantized(InFormat):
    """A parallel linear layer of megatron-core in the recipe's format while training."""

    def _forward_impl(self, input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.precision is None or not self.training:
            return super()._forward_impl(input, weight, *args, **kwargs)
        group = kwargs.get("tp_group") or self.tp_group
        if kwargs.get("sequence_parallel"):
            input = gather_from_sequence_parallel_region(input, group=group)
        elif kwargs.get("allreduce_dgrad"):
            input = copy_to_tensor_model_parallel_region(input, group=group)
        y = LinearProduct.apply(input, weight, self.precision, self.layer_class)
        return y if kwargs.get("bias") is None else y + kwargs["bias"]


class QuantizedColumnParallelLinear(_Quantized, ColumnParallelLinear):
    """ColumnParallelLinear in the recipe's format while training."""


class QuantizedRowParallelLinear(_Quantized, RowParallelLinear):
    """RowParallelLinear in the recipe's format while training."""
