"""Builds megatron-core's HybridModel of an architecture: the transformer config and the layer spec."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

from stagecraft.megatron_cpu import ON_CPU, bind_kernels, bind_modules

import torch
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.ssm.mamba_mixer import MambaMixer, MambaMixerSubmodules
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import MoETransformerLayer, TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from stagecraft.model.activation import squared_relu
from stagecraft.model.attention import ScaledDotProductAttention
from stagecraft.model.config import Architecture
from stagecraft.model.formats import FP8, MXFP8, NVFP4
from stagecraft.model.hardware import runs_transformer_engine
from stagecraft.model.mamba import GatedRMSNorm, split_conv_scan
from stagecraft.model.mtp import Depths
from stagecraft.model.packing import Packed
from stagecraft.model.parts import LOCAL, Parts, of_transformer_engine
from stagecraft.model.stage_recipe import StageRecipe
from stagecraft.model.vocabulary import losses

# The context that megatron-core opens around the layers, by the first of these formats that a recipe has.
AROUND = {NVFP4: {"fp4": "e2m1", "fp4_recipe": "nvfp4"}, MXFP8: {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
          FP8: {"fp8": "hybrid", "fp8_recipe": "tensorwise"}}

# Layers whose activations are not kept for the backward pass, which computes them again (stagecraft/engine/layout.py).
AGAIN = {"none": {}, "moe": {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
         "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}}

bind_kernels(split_conv_scan=split_conv_scan, gated_norm=GatedRMSNorm)


def transformer_config(architecture: Architecture, *, precision: str = "bf16", dtype: torch.dtype = torch.float32, mtp_depths: int = 0,
                       mtp_loss_scale: float = 0.3, expert_bias_rate: float = 1e-3, aux_loss: float = 1e-4,
                       recompute: str = "none", transformer_engine: bool | None = None, **parallel: Any) -> TransformerConfig:
    """megatron-core's config of an architecture.

    Args:
        precision: a recipe of stagecraft.model.precision; what it leaves unquantised, with "bf16" everything, is computed in `dtype`.
        mtp_depths: prediction depths; they share one block. 0 builds no MTP.
        expert_bias_rate, aux_loss: 0 freezes the router's balancing (post-training).
        recompute: which layers' activations the backward pass computes again: "none", "moe", or "full" for all.
        transformer_engine: build its layers. None does so if it is installed, the recipe quantises something, the GPU multiplies every
            format of the recipe, and `dtype` is not float32.
        parallel: tensor_model_parallel_size and the like.
    """
    a, recipe = architecture, StageRecipe(architecture, precision)
    formats = recipe.formats(mtp=bool(mtp_depths))
    if transformer_engine is None:
        transformer_engine = runs_transformer_engine(formats, dtype)
    if transformer_engine and formats:  # for the experts' padding to whole blocks; the recipe has the last word on every layer
        parallel |= next(flags for name, flags in AROUND.items() if name in formats)
    return TransformerConfig(
        num_layers=len(a.hybrid_override_pattern), hidden_size=a.hidden_size, num_attention_heads=a.num_attention_heads,
        num_query_groups=a.num_key_value_heads, kv_channels=a.head_dim, ffn_hidden_size=a.moe_intermediate_size,
        normalization="RMSNorm", layernorm_epsilon=a.norm_eps, add_bias_linear=False, activation_func=squared_relu, gated_linear_unit=False,
        hidden_dropout=0.0, attention_dropout=0.0, init_method_std=a.initializer_range,
        num_moe_experts=a.n_routed_experts, moe_router_topk=a.num_experts_per_tok, moe_ffn_hidden_size=a.moe_intermediate_size,
        moe_latent_size=a.moe_latent_size, moe_shared_expert_intermediate_size=a.moe_shared_expert_intermediate_size,
        moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True, moe_router_bias_update_rate=expert_bias_rate,
        moe_router_topk_scaling_factor=a.routed_scaling_factor, moe_router_load_balancing_type="seq_aux_loss",
        moe_aux_loss_coeff=aux_loss, moe_router_dtype="fp32", moe_token_dispatcher_type="alltoall",
        moe_permute_fusion=not ON_CPU and HAVE_TE,  # the plain one sorts by a list of tensors per expert and adds in bfloat16
        mamba_state_dim=a.ssm_state_size, mamba_head_dim=a.mamba_head_dim, mamba_num_groups=a.n_groups, mamba_num_heads=a.mamba_num_heads,
        is_hybrid_model=True, use_cpu_initialization=ON_CPU,
        transformer_impl="transformer_engine" if transformer_engine else "local", moe_grouped_gemm=transformer_engine,
        params_dtype=dtype, pipeline_dtype=dtype, bf16=dtype == torch.bfloat16, bias_dropout_fusion=False,
        gradient_accumulation_fusion=False, persist_layer_norm=False, calculate_per_token_loss=True, quant_recipe=recipe,
        **AGAIN[recompute],
        **({"mtp_num_layers": mtp_depths, "mtp_loss_scaling_factor": mtp_loss_scale, "mtp_use_repeated_layer": True} if mtp_depths else {}),
        **parallel)


def build_model(architecture: Architecture, config: TransformerConfig, max_sequence_length: int) -> HybridModel:
    """The HybridModel of this rank's pipeline stage, initialised from the megatron RNG state."""
    stages = pipeline_stages(architecture.hybrid_override_pattern, config.pipeline_model_parallel_size)
    config.quant_recipe.layer_offset = sum(map(len, stages[:parallel_state.get_pipeline_model_parallel_rank()]))
    parts = of_transformer_engine() if config.transformer_impl == "transformer_engine" else LOCAL
    bind_modules(norm=parts.norm, duplicated_linear=parts.duplicated)
    config.mtp = Depths(config.mtp_num_layers or 0)
    model = _Model(
        config, layer_spec(architecture, parts), vocab_size=architecture.vocab_size, max_sequence_length=max_sequence_length,
        hybrid_layer_pattern="|".join(stages) + ("/" + architecture.mtp_hybrid_override_pattern) * (config.mtp_num_layers or 0),
        pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage())
    for mixer in (module for module in model.modules() if isinstance(module, MambaMixer)):
        mixer.norm.eps = architecture.norm_eps  # ssm/mamba_mixer.py:419 gives it 1e-5, whatever the model's is
    return model


class _Model(HybridModel):
    """HybridModel that takes boundaries of packed sequences only in the form that every one of its layers reads.

    Its cross-entropy is its own where one rank has the whole vocabulary: megatron-core's passes over it ten times.
    """

    def forward(self, input_ids: Tensor, *args: Any, packed_seq_params: Packed | None = None, **more: Any) -> Tensor:
        """As HybridModel's.

        Raises:
            TypeError: boundaries that the Mamba layers would not see (megatron-core's scan goes on over them where there is no `seq_idx`).
            ValueError: boundaries of another row.
        """
        if packed_seq_params is not None:
            if not isinstance(packed_seq_params, Packed):
                raise TypeError("packed sequences come as stagecraft.model.packing.Packed: their boundaries would be lost otherwise")
            if input_ids.shape != (1, len(packed_seq_params.sequence)):
                raise ValueError(f"boundaries of a row of {len(packed_seq_params.sequence)} tokens for tokens {list(input_ids.shape)}")
        return super().forward(input_ids, *args, packed_seq_params=packed_seq_params, **more)

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """labels [b, s], logits [s, b, this rank's vocabulary] -> [b, s]"""
        return losses(logits.flatten(0, 1), labels.t().flatten()).view(logits.shape[:2]).t().contiguous()


def pipeline_stages(pattern: str, stages: int) -> list[str]:
    """The layers of each stage: as even as it goes, the later stages the longer ones."""
    bounds = [len(pattern) * stage // stages for stage in range(stages + 1)]
    return [pattern[start:end] for start, end in pairwise(bounds)]


def layer_spec(architecture: Architecture, parts: Parts) -> ModuleSpec:
    """What each letter of the layer pattern is made of."""
    norm, column, row = parts.norm, parts.column, parts.row
    mamba = ModuleSpec(module=MambaLayer, submodules=MambaLayerSubmodules(
        norm=norm,
        mixer=ModuleSpec(module=MambaMixer, params={"chunk_size": architecture.chunk_size, "d_conv": architecture.conv_kernel},
                         submodules=MambaMixerSubmodules(in_proj=column, out_proj=row)),
        mamba_bda=get_bias_dropout_add))
    attention = ModuleSpec(module=TransformerLayer, submodules=TransformerLayerSubmodules(
        input_layernorm=norm,
        self_attention=ModuleSpec(module=SelfAttention, params={"attn_mask_type": AttnMaskType.causal}, submodules=SelfAttentionSubmodules(
            linear_qkv=column, core_attention=ScaledDotProductAttention, linear_proj=row)),
        self_attn_bda=get_bias_dropout_add))
    moe = ModuleSpec(module=MoELayer, metainfo={"fuse_pre_mlp_layernorm": False}, submodules=MoESubmodules(
        experts=parts.experts, shared_experts=partial(SharedExpertMLP, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row))))
    experts = ModuleSpec(module=MoETransformerLayer, submodules=TransformerLayerSubmodules(
        pre_mlp_layernorm=norm, mlp=moe, mlp_bda=get_bias_dropout_add))
    mtp = ModuleSpec(module=MultiTokenPredictionBlock, submodules=MultiTokenPredictionBlockSubmodules(layer_specs=[
        ModuleSpec(module=MultiTokenPredictionLayer, submodules=MultiTokenPredictionLayerSubmodules(
            enorm=norm, hnorm=norm, eh_proj=column, mtp_model_layer=None, layer_norm=norm))]))
    return ModuleSpec(module=HybridStack, submodules=HybridStackSubmodules(
        mamba_layer=mamba, attention_layer=attention, moe_layer=experts, mtp_block_spec=mtp))
