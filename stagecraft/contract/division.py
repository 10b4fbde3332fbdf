"""What a model cannot be divided into: rules of the engine, which keeps them, and of the planner, which proposes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class Parts(Protocol):
    """What is divided of an architecture; the names are the keys of the Hugging Face `nemotron_h` configuration."""

    hybrid_override_pattern: str
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    mamba_num_heads: int
    n_groups: int
    n_routed_experts: int
    moe_shared_expert_intermediate_size: int


def multiple(tensor: int, context: int) -> int:
    """The tokens of a row are a multiple of this: of its chunks, and of what sequence parallelism divides each of them into."""
    return tensor * (2 * context if context > 1 else 1)


def refusals(parts: Parts, tokens: int, optimizer: str, *, tensor: int, pipeline: int, context: int, expert: int,
             where: str = "layout") -> Iterator[str]:
    """Why these sizes cannot divide the architecture, in rows of `tokens`: one sentence each, nothing if they can.

    Args:
        where: the layout's name in the profile.
    """
    divided = {"num_attention_heads": parts.num_attention_heads, "mamba_num_heads": parts.mamba_num_heads, "n_groups": parts.n_groups,
               "vocab_size": parts.vocab_size, "moe_shared_expert_intermediate_size": parts.moe_shared_expert_intermediate_size,
               "the row's tokens": tokens}
    for name, size in divided.items():
        if size % tensor:
            yield f"{where}.tensor {tensor} does not divide {name} {size}"
    if tensor % parts.num_key_value_heads and parts.num_key_value_heads % tensor:  # fewer heads than ranks are repeated
        yield f"{where}.tensor {tensor} neither divides num_key_value_heads {parts.num_key_value_heads} nor is a multiple"
    if tokens % multiple(tensor, context):
        yield f"{where}.context {context} needs rows of a multiple of {multiple(tensor, context)} tokens, not {tokens}"
    heads, groups = parts.mamba_num_heads // tensor, max(1, parts.n_groups // tensor)
    if heads % context or (groups % context and context % groups):
        yield f"{where}.context {context} does not divide the {heads} Mamba heads of a tensor-parallel rank, which are in {groups} groups"
    if pipeline > len(parts.hybrid_override_pattern):
        yield f"{where}.pipeline {pipeline} is more than the {len(parts.hybrid_override_pattern)} layers"
    if parts.n_routed_experts % expert:
        yield f"{where}.expert {expert} does not divide n_routed_experts {parts.n_routed_experts}"
    if optimizer == "muon" and tensor > 1:
        yield f"muon needs whole matrices: set {where}.tensor to 1, or optimizer to adamw"
