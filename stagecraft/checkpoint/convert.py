"""Tensor names and layouts of megatron-core's HybridModel <-> the canonical checkpoint: exact, a permutation of the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecraft.model.config import Architecture

# One layer of each type: Hugging Face suffix -> Megatron suffix, for tensors that are the same in both.
MAMBA = {"norm.weight": "norm.weight", "mixer.conv1d.weight": "mixer.conv1d_weight", "mixer.conv1d.bias": "mixer.conv1d_bias",
         **{f"mixer.{name}": f"mixer.{name}" for name in ("A_log", "D", "dt_bias", "in_proj.weight", "out_proj.weight", "norm.weight")}}
ATTENTION = {"norm.weight": "input_layernorm.weight", "mixer.o_proj.weight": "self_attention.linear_proj.weight"}
EXPERTS = {"norm.weight": "pre_mlp_layernorm.weight", "mixer.gate.weight": "mlp.router.weight",
           "mixer.gate.e_score_correction_bias": "mlp.router.expert_bias",
           "mixer.fc1_latent_proj.weight": "mlp.fc1_latent_proj.weight", "mixer.fc2_latent_proj.weight": "mlp.fc2_latent_proj.weight",
           "mixer.shared_experts.up_proj.weight": "mlp.shared_experts.linear_fc1.weight",
           "mixer.shared_experts.down_proj.weight": "mlp.shared_experts.linear_fc2.weight"}
SAME = {"M": MAMBA, "*": ATTENTION, "E": EXPERTS}
MODEL = {"backbone.embeddings.weight": "embedding.word_embeddings.weight", "backbone.norm_f.weight": "decoder.final_norm.weight",
         "lm_head.weight": "output_layer.weight"}
MTP = {"mtp.layers.0.enorm.weight": "mtp.layers.0.enorm.weight", "mtp.layers.0.hnorm.weight": "mtp.layers.0.hnorm.weight",
       "mtp.layers.0.eh_proj.weight": "mtp.layers.0.eh_proj.weight",
       "mtp.layers.1.final_layernorm.weight": "mtp.layers.0.final_layernorm.weight"}


@dataclass(frozen=True)
class Stack:
    """Tensors of one shape that are one with a dimension more, in front. Only what is asked for is put together: every rank takes its own
    experts, and a host has no room for all of a large model's once a rank."""

    parts: Sequence[Tensor]

    def __getitem__(self, place: tuple[slice, ...]) -> Tensor:
        first, *rest = place
        return torch.stack([part[tuple(rest)] for part in self.parts[first]])


def _layers(architecture: Architecture, mtp: bool) -> Iterator[tuple[str, str, str]]:
    """(type letter, Hugging Face prefix, Megatron prefix) of every layer."""
    for index, letter in enumerate(architecture.hybrid_override_pattern):
        yield letter, f"backbone.layers.{index}.", f"decoder.layers.{index}."
    if mtp:
        for index, letter in enumerate(architecture.mtp_hybrid_override_pattern):
            yield letter, f"mtp.layers.{index}.", f"mtp.layers.0.mtp_model_layer.layers.{index}."


def same_names(architecture: Architecture, mtp: bool) -> dict[str, str]:
    """Hugging Face name -> Megatron name of every tensor that both store alike."""
    names = {**MODEL, **(MTP if mtp else {})}
    for letter, hf, megatron in _layers(architecture, mtp):
        names.update({hf + left: megatron + right for left, right in SAME[letter].items()
                      if architecture.moe_latent_size or "latent" not in left})
    return names


def to_hf(architecture: Architecture, state: Mapping[str, Tensor], mtp: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Megatron's whole state dict -> (name, tensor) of the canonical checkpoint. `mtp`: the model has an MTP block."""
    a = architecture
    for hf, megatron in same_names(a, mtp).items():
        yield hf, state[megatron]
    for letter, hf, megatron in _layers(a, mtp):
        if letter == "*":
            # linear_qkv holds, per KV head, its query heads, then its key, then its value.
            grouped = state[f"{megatron}self_attention.linear_qkv.weight"].view(a.num_key_value_heads, -1, a.head_dim, a.hidden_size)
            for name, part in (("q", grouped[:, :-2]), ("k", grouped[:, -2]), ("v", grouped[:, -1])):
                yield f"{hf}mixer.{name}_proj.weight", part.reshape(-1, a.hidden_size)
        elif letter == "E":
            for name in ("up", "down"):
                for expert, weight in enumerate(state[f"{megatron}mlp.experts.{name}"]):
                    yield f"{hf}mixer.experts.{expert}.{name}_proj.weight", weight


def from_hf(architecture: Architecture, tensors: Mapping[str, Tensor], mtp: bool = True) -> dict[str, Tensor | Stack]:
    """The inverse of `to_hf`: Megatron's whole state dict, the experts of a layer as a `Stack`.

    Raises:
        KeyError: a tensor of the architecture is missing.
    """
    a = architecture
    state: dict[str, Tensor | Stack] = {megatron: tensors[hf] for hf, megatron in same_names(a, mtp).items()}
    for letter, hf, megatron in _layers(a, mtp):
        if letter == "*":
            heads = [tensors[f"{hf}mixer.{name}_proj.weight"].view(a.num_key_value_heads, -1, a.head_dim, a.hidden_size) for name in "qkv"]
            state[f"{megatron}self_attention.linear_qkv.weight"] = torch.cat(heads, 1).reshape(-1, a.hidden_size)
        elif letter == "E":
            for name in ("up", "down"):
                state[f"{megatron}mlp.experts.{name}"] = Stack(
                    [tensors[f"{hf}mixer.experts.{expert}.{name}_proj.weight"] for expert in range(a.n_routed_experts)])
    return state
