"""Published models the planner is compared with: their shapes from models/*.yaml, read as the same list of layers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ruamel.yaml import YAML

from stagecraft.contract.errors import UserError
from stagecraft.planning.architecture import Attention, Layer, Model, Product, Scan, nemotron_h

MODELS = Path(__file__).parent / "models"


def peer(name: str) -> Model:
    """The model of models/NAME.yaml.

    Raises:
        UserError: there is none of that name.
    """
    path = MODELS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in MODELS.glob("*.yaml")))
        raise UserError(f"no model {name!r}", where="benchmarks/models", mend=f"known are {known}")
    config: dict[str, Any] = YAML(typ="safe").load(path.read_text())
    return build(config["family"], config["shapes"], name)


def build(family: str, shapes: dict[str, Any], name: str) -> Model:
    """A model of a family; `shapes` in the names of its Hugging Face configuration."""
    families = {"nemotron_h": nemotron_h, "gpt_oss": _gpt_oss, "qwen3_moe": _qwen3, "qwen3_5_moe": _qwen}
    return families[family](SimpleNamespace(**shapes), name)


def _gpt_oss(s: SimpleNamespace, name: str) -> Model:
    """Blocks of attention (every other one over a window, all with sinks and biases) and gated experts with biases."""
    queries, keys = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
    experts = {"copies": s.num_local_experts, "used": s.num_experts_per_tok, "split": "expert"}
    windowed, full = (Layer("attention", (Product("qkv", s.hidden_size, queries + 2 * keys, bias=queries + 2 * keys),
                                          Product("attention out", queries, s.hidden_size, bias=s.hidden_size)),
                            s.hidden_size + s.num_attention_heads,  # norm; sinks
                            Attention(s.num_attention_heads, s.num_key_value_heads, s.head_dim, window))
                      for window in (s.sliding_window, None))
    moe = Layer("moe", (Product("router", s.hidden_size, s.num_local_experts, bias=s.num_local_experts, split="none"),
                        Product("experts up", s.hidden_size, 2 * s.intermediate_size, bias=2 * s.intermediate_size, **experts),
                        Product("experts down", s.intermediate_size, s.hidden_size, bias=s.hidden_size, **experts)), s.hidden_size)
    return Model(name, s.hidden_size, s.vocab_size, (windowed, moe, full, moe) * (s.num_hidden_layers // 2))


def _qwen3(s: SimpleNamespace, name: str) -> Model:
    """Blocks of attention with normed queries and keys, and gated experts."""
    queries, keys = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
    experts = {"copies": s.num_experts, "used": s.num_experts_per_tok, "split": "expert"}
    block = (Layer("attention", (Product("qkv", s.hidden_size, queries + 2 * keys), Product("attention out", queries, s.hidden_size)),
                   s.hidden_size + 2 * s.head_dim, Attention(s.num_attention_heads, s.num_key_value_heads, s.head_dim)),
             Layer("moe", (Product("router", s.hidden_size, s.num_experts, split="none"),
                           Product("experts up", s.hidden_size, 2 * s.moe_intermediate_size, **experts),
                           Product("experts down", s.moe_intermediate_size, s.hidden_size, **experts)), s.hidden_size))
    return Model(name, s.hidden_size, s.vocab_size, block * s.num_hidden_layers)


def _qwen(s: SimpleNamespace, name: str) -> Model:
    """Blocks of a mixer (three gated delta nets, then one gated attention) and gated experts with one shared; the text tower alone."""
    queries, keys = s.num_attention_heads * s.head_dim, s.num_key_value_heads * s.head_dim
    inner, key = s.linear_num_value_heads * s.linear_value_head_dim, s.linear_num_key_heads * s.linear_key_head_dim
    channels = 2 * key + inner
    delta = Layer("delta", (Product("mamba in", s.hidden_size, channels + inner + 2 * s.linear_num_value_heads),
                            Product("mamba out", inner, s.hidden_size)),
                  s.hidden_size + channels * s.linear_conv_kernel_dim + 2 * s.linear_num_value_heads + s.linear_value_head_dim,
                  Scan(s.linear_num_value_heads, s.linear_value_head_dim, s.linear_key_head_dim, s.linear_num_key_heads, 64, channels,
                       s.linear_conv_kernel_dim, delta=True))
    attention = Layer("attention", (Product("qkv", s.hidden_size, 2 * queries + 2 * keys),  # queries come with an output gate
                                    Product("attention out", queries, s.hidden_size)), s.hidden_size + 2 * s.head_dim,
                      Attention(s.num_attention_heads, s.num_key_value_heads, s.head_dim))
    experts = {"copies": s.num_experts, "used": s.num_experts_per_tok, "split": "expert"}
    moe = Layer("moe", (Product("router", s.hidden_size, s.num_experts, split="none"),
                        Product("experts up", s.hidden_size, 2 * s.moe_intermediate_size, **experts),
                        Product("experts down", s.moe_intermediate_size, s.hidden_size, **experts),
                        Product("shared", s.hidden_size, 2 * s.shared_expert_intermediate_size),
                        Product("shared", s.shared_expert_intermediate_size, s.hidden_size)), 2 * s.hidden_size)  # norm; shared gate
    layers = [layer for index in range(s.num_hidden_layers)
              for layer in (attention if (index + 1) % s.full_attention_interval == 0 else delta, moe)]
    return Model(name, s.hidden_size, s.vocab_size, tuple(layers))
