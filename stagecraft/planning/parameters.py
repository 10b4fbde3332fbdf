"""How many parameters an architecture has, how many a token reads, and how many bytes they take: counted from shapes alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

BYTES_PER_PARAMETER = {"float32": 4.0, "bfloat16": 2.0, "fp8": 1.0, "nvfp4": 0.5 + 1 / 16}
"""NVFP4: half a byte per element and one E4M3 scale per block of 16; the FP32 scale per tensor is too small to count."""


class Shapes(Protocol):
    """What is read of an architecture; the names are the keys of the Hugging Face `nemotron_h` configuration."""

    hybrid_override_pattern: str
    mtp_hybrid_override_pattern: str
    num_nextn_predict_layers: int
    hidden_size: int
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    mamba_num_heads: int
    mamba_head_dim: int
    ssm_state_size: int
    n_groups: int
    conv_kernel: int
    n_routed_experts: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    moe_latent_size: int | None
    moe_shared_expert_intermediate_size: int


@dataclass(frozen=True)
class Counts:
    """Parameters of one model.

    Attributes:
        total: every trained parameter outside the MTP block: embedding, head, layers, norms. The router's expert bias is a
            buffer that no gradient reaches, so it is not counted; transformers counts in the same way.
        active: of `total`, what one token reads: the `num_experts_per_tok` routed experts of each MoE layer instead of all,
            and everything else in full, the whole embedding table and head included.
        mtp: the multi-token prediction block, once, however many depths share it; it uses the backbone's embedding and head.
        embedding: of `total`, the embedding table and the head, which are never tied.
        routed: of `total`, the routed experts, which are what low precision is mostly about.
    """

    total: int
    active: int
    mtp: int
    embedding: int
    routed: int

    @property
    def active_without_embedding(self) -> int:
        """`active` less the embedding table and the head: the convention that some papers follow."""
        return self.active - self.embedding


def count_parameters(shapes: Shapes) -> Counts:
    """Count the parameters of a hybrid Mamba-2 / attention / MoE model.

    With the shapes of the 120B model this gives 120.67B in all, 12.77B active and 2.94B in the MTP block
    (arXiv 2604.12374, table 1, prints 120.6B and 12.7B): the active figure is reached only with embedding and head counted.

    Raises:
        ValueError: a pattern holds a letter other than M (Mamba-2), * (attention), E (mixture of experts).
    """
    routed = _routed_experts(shapes)
    layers = Counter(shapes.hybrid_override_pattern)
    embedding = 2 * shapes.vocab_size * shapes.hidden_size  # the head is never tied
    total = embedding + shapes.hidden_size + sum(number * _layer(letter, shapes) for letter, number in layers.items())
    idle = layers["E"] * (routed - routed * shapes.num_experts_per_tok // shapes.n_routed_experts) if layers["E"] else 0
    return Counts(total=total, active=total - idle, mtp=_mtp_block(shapes), embedding=embedding, routed=layers["E"] * routed)


def count_bytes(counts: Counts, routed: str, rest: str) -> float:
    """Bytes of the weights (MTP block included, in the format of the rest) with the routed experts in one format and the rest in another.

    Args:
        routed: format of the routed experts, a key of BYTES_PER_PARAMETER.
        rest: format of everything else.
    """
    return counts.routed * BYTES_PER_PARAMETER[routed] + (counts.total - counts.routed + counts.mtp) * BYTES_PER_PARAMETER[rest]


def _layer(letter: str, shapes: Shapes) -> int:
    """One layer with the RMSNorm before it."""
    mixers = {"M": _mamba, "*": _attention, "E": _experts}
    if letter not in mixers:
        raise ValueError(f"layer pattern holds {letter!r}; known are M (Mamba-2), * (attention), E (mixture of experts)")
    return shapes.hidden_size + mixers[letter](shapes)


def _mamba(shapes: Shapes) -> int:
    inner = shapes.mamba_num_heads * shapes.mamba_head_dim
    convolved = inner + 2 * shapes.n_groups * shapes.ssm_state_size  # x, B and C pass through the causal convolution
    in_projection = shapes.hidden_size * (inner + convolved + shapes.mamba_num_heads)  # z; x, B, C; dt
    convolution = convolved * (shapes.conv_kernel + 1)  # depthwise, with a bias
    per_head = 3 * shapes.mamba_num_heads  # A_log, D, dt_bias
    return in_projection + convolution + per_head + inner + inner * shapes.hidden_size  # gated norm, output projection


def _attention(shapes: Shapes) -> int:
    return 2 * shapes.hidden_size * shapes.head_dim * (shapes.num_attention_heads + shapes.num_key_value_heads)


def _experts(shapes: Shapes) -> int:
    router = shapes.hidden_size * shapes.n_routed_experts
    shared = 2 * shapes.hidden_size * shapes.moe_shared_expert_intermediate_size
    latent = 2 * shapes.hidden_size * shapes.moe_latent_size if shapes.moe_latent_size else 0
    return router + shared + latent + _routed_experts(shapes)


def _routed_experts(shapes: Shapes) -> int:
    width = shapes.moe_latent_size or shapes.hidden_size
    return shapes.n_routed_experts * 2 * width * shapes.moe_intermediate_size  # up and down, no gate


def _mtp_block(shapes: Shapes) -> int:
    """Norms of embedding and hidden state, the projection that joins them, the block's own layers, its final norm."""
    if not shapes.num_nextn_predict_layers:
        return 0
    joined = 2 * shapes.hidden_size + 2 * shapes.hidden_size * shapes.hidden_size
    return joined + sum(_layer(letter, shapes) for letter in shapes.mtp_hybrid_override_pattern) + shapes.hidden_size
