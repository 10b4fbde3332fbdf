"""The precision recipe as data: module patterns -> formats, in the schema that Transformer Engine's layers read too.

Source of the exceptions: Nemotron 3 Super technical report (arXiv 2604.12374), section 2: the last 15% of layers, latent
projections, QKV and attention output, MTP, embeddings and head stay in BF16, the Mamba output projection in MXFP8, the router
in FP32; every other linear layer is NVFP4 in all three of its products.
"""

from __future__ import annotations

from math import ceil
from typing import Any

from stagecraft.model.config import Architecture
from stagecraft.model.products import MXFP8, NVFP4

LAST_LAYERS_SHARE = 0.15
PRECISIONS = ("nvfp4", "bf16")


def recipe(architecture: Architecture, precision: str) -> dict[str, Any] | None:
    """The recipe dictionary (`RecipeConfig.from_config_dict`); the first matching pattern decides. None: nothing is quantised."""
    if precision != "nvfp4":
        return None
    layers = len(architecture.hybrid_override_pattern)
    kept = range(layers - ceil(LAST_LAYERS_SHARE * layers), layers)
    configs = {
        "bf16": {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {}},
        "mxfp8": {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {"fp8_quantization_recipe": "mxfp8"}},
        "nvfp4": {"transformer_engine_config_type": "TEQuantizationParams", "training_recipe": {"fp4_quantization_recipe": "nvfp4"}},
    }
    patterns = [
        ("mtp", "mtp.*", "bf16"), ("head", "output_layer*", "bf16"), ("attention", "*self_attention*", "bf16"),
        ("latent", "*latent_proj*", "bf16"), *((f"last-{layer}", f"decoder.layers.{layer}.*", "bf16") for layer in kept),
        ("mamba-out", "*mixer.out_proj*", "mxfp8"), ("rest", "*", "nvfp4"),
    ]
    matchers = {name: {"config": config, "type": "glob", "pattern": pattern, "enabled": True} for name, pattern, config in patterns}
    return {"configs": configs, "matchers": matchers}


def format_of(quant_config: Any) -> str | None:
    """The format a layer computes in, from megatron-core's QuantizationConfig of that layer; None is the tensors' own dtype."""
    if quant_config is None:
        return None
    training = quant_config.config.get("training_recipe", {})
    if training.get("fp4_quantization_recipe") == "nvfp4":
        return NVFP4
    if training.get("fp8_quantization_recipe") == "mxfp8":
        return MXFP8
    if training:
        raise ValueError(f"{quant_config.match_input.module_path}: no emulation of {training}")
    return None
