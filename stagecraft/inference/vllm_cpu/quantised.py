"""ModelOpt checkpoints (FP8, NVFP4, mixed per layer) computed on a CPU in the compute dtype, float32 by default.

Weights are dequantised once when loaded; the inputs of quantised operators are rounded at every call to what the checkpoint's
format and scales can represent. So the results are those of a GPU with these formats up to the order of summation.

Upstream, vLLM 0.32.0:
  model_executor/layers/quantization/modelopt.py:441,764,1612  `get_supported_act_dtypes` leave float32 out (config/vllm.py:908
      then refuses the model)
  model_executor/kernels/linear/__init__.py:462  the FP8 kernels for CPUs need AMX tiles and leave activations unrounded
  model_executor/kernels/linear/__init__.py:574  `_POSSIBLE_NVFP4_KERNELS` has no CPU entry
  model_executor/layers/fused_moe/oracle/{fp8,nvfp4}.py  no backend for experts without a gate on a CPU
  model_executor/layers/quantization/modelopt.py:582  `ModelOptFp8MoEMethod._setup_kernel` does not hand the weights to the
      experts once they are complete, as the NVFP4 method does at 1085
  _custom_ops.py:1889  `static_scaled_fp8_quant` has no CPU kernel; fused projections with unequal scales are requantised with it
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm import _custom_ops
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.nvfp4.base import NvFp4LinearKernel, NvFp4LinearLayerConfig
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import FP8ScaledMMLinearKernel, FP8ScaledMMLinearLayerConfig
from vllm.model_executor.layers.fused_moe.activation import MoEActivation
from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig
from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
from vllm.model_executor.layers.quantization import modelopt
from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8StaticTensorSym, kNvfp4Dynamic
from vllm.model_executor.utils import replace_parameter
from vllm.platforms.interface import PlatformEnum

from stagecraft.inference.vllm_cpu.moe import SquaredReluExperts
from stagecraft.numerics import nvfp4
from stagecraft.numerics.rounding import E4M3_MAX, e2m1, e4m3


def round_fp8(x: Tensor, scale: Tensor) -> Tensor:
    """Nearest multiples of `scale` (float32 []) by an E4M3 number; shape and dtype of `x`."""
    return (e4m3(x.float() / scale) * scale).to(x.dtype)


def round_nvfp4(x: Tensor, scale: Tensor) -> Tensor:
    """Nearest NVFP4 numbers, blocks of 16 along the last dimension, tensor scale `scale` (float32 []); shape and dtype of `x`."""
    blocks = x.float().unflatten(-1, (-1, nvfp4.BLOCK))
    magnitudes = blocks.abs()
    scales = nvfp4.block_scales(magnitudes.amax(-1, keepdim=True), scale).float() * scale
    return (e2m1(magnitudes / scales) * scales).copysign(blocks).flatten(-2).to(x.dtype)


class Fp8Linear(FP8ScaledMMLinearKernel):
    """y = round(x) @ dequantised(W)^T with static scales, one per tensor."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, c: FP8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        static = c.weight_quant_key == c.activation_quant_key == kFp8StaticTensorSym
        return static, None if static else "serves static scales, one per tensor, only"

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        weight = layer.weight.float() * layer.weight_scale  # [in, out]: upstream transposes FP8 weights
        layer.dequantised = weight.t().contiguous().to(self.config.out_dtype)

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(round_fp8(x, layer.input_scale), layer.dequantised, bias)

    def apply_scaled_mm(self, **_: Any) -> Tensor:
        raise NotImplementedError("Fp8Linear replaces apply_weights as a whole")


class Nvfp4Linear(NvFp4LinearKernel):
    """y = round(x) @ dequantised(W)^T, block scales of the input found at every call."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        return True, None

    @classmethod
    def can_implement(cls, config: NvFp4LinearLayerConfig) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        layer.dequantised = nvfp4.dequantize(layer.weight, layer.weight_scale, layer.weight_global_scale, torch.get_default_dtype())

    def apply_weights(self, layer: torch.nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        rounded = round_nvfp4(x, layer.input_global_scale) if hasattr(layer, "input_global_scale") else x
        return F.linear(rounded, layer.dequantised.to(x.dtype), bias)


class Fp8Experts(SquaredReluExperts):
    """Experts with FP8 weights and inputs; the input scale is the largest of all experts, as upstream's GPU kernels have it."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        for name in ("w13", "w2"):
            scale = getattr(layer, f"{name}_weight_scale").float().reshape(-1, 1, 1)
            replace_parameter(layer, f"{name}_weight", (getattr(layer, f"{name}_weight").float() * scale).to(layer.orig_dtype))

    def round_input(self, x: Tensor) -> Tensor:
        return round_fp8(x, self.quant_config.a1_scale)

    def round_hidden(self, x: Tensor) -> Tensor:
        return round_fp8(x, self.quant_config.a2_scale)


class Nvfp4Experts(SquaredReluExperts):
    """Experts with NVFP4 weights and inputs; the inputs' tensor scale is the largest of all experts, as upstream has it."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        for name in ("w13", "w2"):
            tensor_scale = getattr(layer, f"{name}_weight_scale_2").float().reshape(-1, 1, 1)
            weight = nvfp4.dequantize(getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_weight_scale"), tensor_scale)
            replace_parameter(layer, f"{name}_weight", weight.to(layer.params_dtype))

    def round_input(self, x: Tensor) -> Tensor:
        return round_nvfp4(x, 1 / self.quant_config.a1_gscale)

    def round_hidden(self, x: Tensor) -> Tensor:
        return round_nvfp4(x, 1 / self.quant_config.a2_gscale)


def scaled_fp8_quant(input: Tensor, scale: Tensor | None = None, num_token_padding: int | None = None, scale_ub: Tensor | None = None,
                     use_per_token_if_dynamic: bool = False, output: Tensor | None = None,
                     group_shape: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """`_custom_ops.scaled_fp8_quant` for one scale per tensor or, dynamically, per token."""
    if num_token_padding or scale_ub is not None or (scale is not None and scale.numel() > 1):
        raise NotImplementedError("FP8 quantisation on a CPU: one scale per tensor, or dynamic scales without padding or bound")
    if scale is None:
        amax = input.abs().amax(-1, keepdim=True) if use_per_token_if_dynamic else input.abs().amax().reshape(1)
        scale = (amax.float() / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    rounded = (input.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return (rounded if output is None else output.copy_(rounded)), scale


def mend() -> None:
    _add_float32()
    linear._POSSIBLE_FP8_KERNELS[PlatformEnum.CPU].insert(0, Fp8Linear)
    linear.register_linear_kernel(Nvfp4Linear, PlatformEnum.CPU, "nvfp4")
    _custom_ops.scaled_fp8_quant = scaled_fp8_quant
    _add_experts()


def _add_float32() -> None:
    for config in (modelopt.ModelOptFp8Config, modelopt.ModelOptNvFp4Config, modelopt.ModelOptMixedPrecisionConfig):
        upstream = config.get_supported_act_dtypes
        config.get_supported_act_dtypes = lambda self, upstream=upstream: [*upstream(self), torch.float32]


def _add_experts() -> None:
    upstream_fp8, upstream_nvfp4 = modelopt.select_fp8_moe_backend, modelopt.select_nvfp4_moe_backend
    upstream_setup = modelopt.ModelOptFp8MoEMethod._setup_kernel

    def select_fp8(config: FusedMoEConfig, weight_key: object, activation_key: object, **rest: Any) -> tuple[Any, type]:
        if config.activation == MoEActivation.RELU2_NO_MUL and weight_key == activation_key == kFp8StaticTensorSym:
            return Fp8MoeBackend.EMULATION, Fp8Experts
        return upstream_fp8(config=config, weight_key=weight_key, activation_key=activation_key, **rest)

    def select_nvfp4(config: FusedMoEConfig, weight_key: object, activation_key: object) -> tuple[Any, type]:
        if config.activation == MoEActivation.RELU2_NO_MUL and activation_key == kNvfp4Dynamic:
            return NvFp4MoeBackend.EMULATION, Nvfp4Experts
        return upstream_nvfp4(config=config, weight_key=weight_key, activation_key=activation_key)

    def setup(self: modelopt.ModelOptFp8MoEMethod, layer: torch.nn.Module, *weights: Tensor) -> None:
        upstream_setup(self, layer, *weights)
        if self.experts_cls is Fp8Experts:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    modelopt.select_fp8_moe_backend, modelopt.select_nvfp4_moe_backend = select_fp8, select_nvfp4
    modelopt.ModelOptFp8MoEMethod._setup_kernel = setup
