"""ModelOpt checkpoints in FP8 and NVFP4 on a CPU: weights dequantised once at load, activations rounded in every call.

The results are those of the format up to the order of summation, every operator with the scales that the checkpoint gives it.
Upstream, vLLM 0.32.0:
  model_executor/layers/quantization/modelopt.py:441,764,1612  `get_supported_act_dtypes` leave float32 out
  model_executor/kernels/linear/__init__.py:462  the FP8 kernels for CPUs need AMX tiles and leave activations unrounded
  model_executor/kernels/linear/__init__.py:574  `_POSSIBLE_NVFP4_KERNELS` has no entry for CPUs
  model_executor/layers/fused_moe/oracle/{fp8,nvfp4}.py  no backend for experts without a gate on a CPU
  model_executor/layers/quantization/modelopt.py:630  one input scale for all experts of a layer, the largest (ModelOpt 0.47 writes
      equal ones; where they differ, an expert with small inputs would round them in steps made for another)
  model_executor/layers/quantization/modelopt.py:2117  fused projections with unequal scales are quantised a second time
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FUSED_MOE_UNQUANTIZED_CONFIG
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.unquantized import UnquantizedMoeBackend, make_unquantized_moe_kernel
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym, kNvfp4Dynamic, kNvfp4Static
from vllm.model_executor.utils import replace_parameter

from stagecraft.inference.vllm_cpu.linear import plain
from stagecraft.inference.vllm_cpu.moe import SquaredReluExperts
from stagecraft.numerics import fp8, nvfp4

FORMATS = {None: 0, fp8.round_static: 1, nvfp4.round_static: 2}  # loops.hpp
UNSET = torch.finfo(torch.float32).min  # a merged layer stored as one tensor fills the first of its scales only


class RoundingExperts(SquaredReluExperts):
    """Dequantised experts whose inputs are rounded, each with its expert's scale."""

    def set_scales(self, rounding: Callable[[Tensor, Tensor], Tensor], layer: torch.nn.Module) -> None:
        """Take the scales [experts] of the inputs from the loaded `layer`."""
        self.rounding = rounding
        self.input_scale, self.hidden_scale = (
            getattr(layer, name).detach().float().reshape(-1, 1).clone() for name in ("w13_input_scale", "w2_input_scale"))

    def round_input(self, rows: Tensor, expert: Tensor) -> Tensor:
        return self.rounding(rows, self.input_scale[expert])

    def round_hidden(self, rows: Tensor, expert: Tensor) -> Tensor:
        return self.rounding(rows, self.hidden_scale[expert])


def _fp8_experts(layer: torch.nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return tuple((getattr(layer, f"{name}_weight").float() * getattr(layer, f"{name}_weight_scale").view(-1, 1, 1)).to(dtype)
                 for name in ("w13", "w2"))


def _nvfp4_experts(layer: torch.nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return tuple(nvfp4.dequantize(getattr(layer, f"{name}_weight").data, getattr(layer, f"{name}_weight_scale").data,
                                  getattr(layer, f"{name}_weight_scale_2").data.view(-1, 1, 1), dtype) for name in ("w13", "w2"))


def _process_experts(upstream: Callable[..., None], dequantise: Callable[..., tuple[Tensor, Tensor]],
                     rounding: Callable[[Tensor, Tensor], Tensor], self: Any, layer: torch.nn.Module) -> None:
    """`process_weights_after_loading` of a ModelOpt MoE method."""
    if self.experts_cls is not RoundingExperts:
        return upstream(self, layer)
    w13, w2 = dequantise(layer, self.moe.in_dtype)
    replace_parameter(layer, "w13_weight", w13)
    replace_parameter(layer, "w2_weight", w2)
    self.moe_quant_config = FUSED_MOE_UNQUANTIZED_CONFIG
    self.moe_kernel = make_unquantized_moe_kernel(
        quant_config=self.moe_quant_config, moe_config=self.moe, backend=UnquantizedMoeBackend.CPU, experts_cls=RoundingExperts,
        routing_tables=layer._expert_routing_tables())
    self.moe_kernel.fused_experts.set_scales(rounding, layer)
    return None


def _select(upstream: Callable[..., Any], backend: Any) -> Callable[..., Any]:
    def select(config: Any, *args: Any, **kwargs: Any) -> Any:
        if config.activation == MoEActivation.RELU2_NO_MUL:
            return backend, RoundingExperts
        return upstream(config, *args, **kwargs)

    return select


def _experts_quant_config(upstream: Callable[..., Any], self: Any, layer: torch.nn.Module) -> Any:
    return FUSED_MOE_UNQUANTIZED_CONFIG if self.experts_cls is RoundingExperts else upstream(self, layer)


class DequantisedLinear:
    """In place of a kernel: a merged layer's parts keep their own scales."""

    def __init__(self, spec: Any):
        self.nvfp4 = spec.weight == kNvfp4Static
        self.rounding = {kFp8StaticTensorSym: fp8.round_static, kNvfp4Dynamic: nvfp4.round_static, None: None}[spec.activation]

    def input_quant_key(self) -> None:
        """No key: the operator before hands its results over unrounded."""

    def prepare(self, layer: torch.nn.Module, dtype: torch.dtype) -> None:
        """Turn the loaded parameters into one weight of `dtype` and the rounding of the inputs."""
        widths = torch.tensor(layer.logical_widths)
        if self.nvfp4:
            tensor_scale = _filled(layer.weight_scale_2).repeat_interleave(widths)[:, None]
            weight = nvfp4.dequantize(layer.weight.data, layer.weight_scale.data, tensor_scale, dtype)
        else:
            weight = (layer.weight.float() * _filled(layer.weight_scale).repeat_interleave(widths)[:, None]).to(dtype)
        self.weight, self.widths = weight, layer.logical_widths
        self.input_scales = _filled(layer.input_scale) if self.rounding else torch.ones(1)
        if (self.input_scales == self.input_scales[0]).all():
            self.input_scales = self.input_scales[:1]

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.rounding:
            return F.linear(x, self.weight, bias)
        if len(self.input_scales) == 1:
            return F.linear(self.rounding(x, self.input_scales), self.weight, bias)
        shards = zip(self.input_scales, self.weight.split(self.widths))
        parts = [F.linear(self.rounding(x, scale.view(1)), weight) for scale, weight in shards]
        return torch.cat(parts, -1) if bias is None else torch.cat(parts, -1) + bias


def dense(layer: LinearBase) -> tuple[Tensor, int, float] | None:
    """What a linear layer of one process multiplies by, and the format and the scale of what it multiplies; None where that is not all."""
    if plain(layer):
        return layer.weight, FORMATS[None], 1.0
    kernel = getattr(layer.quant_method, "kernel", None)
    if not isinstance(kernel, DequantisedLinear) or layer.bias is not None or layer.tp_size != 1 or len(kernel.input_scales) != 1:
        return None
    return kernel.weight, FORMATS[kernel.rounding], float(kernel.input_scales)


def rounding_experts(routed: torch.nn.Module) -> RoundingExperts | None:
    """The experts of a quantised layer."""
    experts = getattr(getattr(routed.quant_method, "moe_kernel", None), "fused_experts", None)
    return experts if isinstance(experts, RoundingExperts) else None


def _filled(scale: Tensor) -> Tensor:
    return torch.where(scale == UNSET, scale[0], scale).detach().float().clone()


def _ours(spec: Any) -> bool:
    known = (kFp8StaticTensorSym, kFp8StaticTensorSym), (kNvfp4Static, kNvfp4Dynamic), (kNvfp4Static, None)
    return (spec.weight, spec.activation) in known


def _with_float32(upstream: Callable[[Any], list[torch.dtype]]) -> Callable[[Any], list[torch.dtype]]:
    return lambda self: [*upstream(self), torch.float32]


def mend() -> None:
    """Serve ModelOpt's FP8 and NVFP4 linear layers, and its experts without a gate, on CPU."""
    for config in (modelopt.ModelOptFp8Config, modelopt.ModelOptNvFp4Config, modelopt.ModelOptMixedPrecisionConfig):
        config.get_supported_act_dtypes = _with_float32(config.get_supported_act_dtypes)
    method = modelopt.ModelOptLinearMethod
    upstream_select, upstream_create = modelopt.select_linear_kernel, method.create_weights
    upstream_finish = method.process_weights_after_loading

    def select(spec: Any, *args: Any, **kwargs: Any) -> Any:
        return DequantisedLinear(spec) if _ours(spec) else upstream_select(spec, *args, **kwargs)

    def create(self: Any, layer: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        upstream_create(self, layer, *args, **kwargs)
        for name in ("weight_scale_2", "input_scale"):  # modelopt.py leaves these of NVFP4 uninitialised
            if isinstance(self.kernel, DequantisedLinear) and getattr(layer, name, None) is not None:
                getattr(layer, name).data.fill_(UNSET)

    def process(self: Any, layer: torch.nn.Module) -> None:
        if isinstance(self.kernel, DequantisedLinear):
            self.kernel.prepare(layer, self.out_dtype)
        else:
            upstream_finish(self, layer)

    modelopt.select_linear_kernel, method.create_weights, method.process_weights_after_loading = select, create, process
    modelopt.select_fp8_moe_backend = _select(modelopt.select_fp8_moe_backend, Fp8MoeBackend.EMULATION)
    modelopt.select_nvfp4_moe_backend = _select(modelopt.select_nvfp4_moe_backend, NvFp4MoeBackend.EMULATION)
    for experts, dequantise, rounding in ((modelopt.ModelOptFp8MoEMethod, _fp8_experts, fp8.round_static),
                                          (modelopt.ModelOptNvFp4FusedMoE, _nvfp4_experts, nvfp4.round_static)):
        upstream_process, upstream_config = experts.process_weights_after_loading, experts.get_fused_moe_quant_config
        experts.process_weights_after_loading = _method(partial(_process_experts, upstream_process, dequantise, rounding))
        experts.get_fused_moe_quant_config = _method(partial(_experts_quant_config, upstream_config))


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    """A `partial` is no descriptor: a plain function becomes a method."""
    return lambda self, layer: function(self, layer)
