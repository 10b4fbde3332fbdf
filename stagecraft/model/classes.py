"""Classes of layers, as a report on precision names them, and the linear layers of an architecture by megatron-core's module names."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch

from stagecraft.model.config import Architecture

_CLASSES = (  # the first that fits
    ("*.router*", "router"), ("mtp.*", "MTP block"), ("embedding.*", "embedding"), ("output_layer*", "head"),
    ("*.mixer.in_proj*", "Mamba input"), ("*.mixer.out_proj*", "Mamba output"),
    ("*.self_attention.linear_qkv*", "QKV"), ("*.self_attention.linear_proj*", "attention output"),
    ("*_latent_proj*", "latent projections"), ("*.mlp.experts*", "routed experts"), ("*.shared_experts.*", "shared expert"),
)
CLASSES = tuple(name for _, name in _CLASSES)
_PARTS = {
    "M": ("mixer.in_proj", "mixer.out_proj"),
    "*": ("self_attention.linear_qkv", "self_attention.linear_proj"),
    "E": ("mlp.router", "mlp.fc1_latent_proj", "mlp.fc2_latent_proj", "mlp.experts", "mlp.shared_experts.linear_fc1",
          "mlp.shared_experts.linear_fc2"),
}


def class_of(path: str) -> str | None:
    """The class of a module or parameter by its name; None for what multiplies nothing (norms, convolutions)."""
    return next((name for pattern, name in _CLASSES if fnmatch(path, pattern)), None)


def linear_layers(architecture: Architecture, *, mtp: bool) -> Iterator[str]:
    """The names of all linear layers of the whole model, the routed experts of a layer as one, the shared MTP block once."""
    def parts(prefix: str, pattern: str) -> Iterator[str]:
        for at, letter in enumerate(pattern):
            yield from (f"{prefix}.layers.{at}.{part}" for part in _PARTS[letter] if architecture.moe_latent_size or "latent" not in part)

    yield "embedding.word_embeddings"
    yield from parts("decoder", architecture.hybrid_override_pattern)
    if mtp:
        yield "mtp.layers.0.eh_proj"
        yield from parts("mtp.layers.0.mtp_model_layer", architecture.mtp_hybrid_override_pattern)
    yield "output_layer"


def sizes_of(architecture: Architecture, path: str, tensor: int) -> tuple[int, int]:
    """(in, out) of a linear layer of that name on one of `tensor` tensor-parallel ranks; of routed experts, the first of their two."""
    a = architecture
    inner, heads, experts = a.mamba_num_heads * a.mamba_head_dim, a.num_attention_heads * a.head_dim, a.moe_latent_size or a.hidden_size
    mamba = 2 * (inner + a.n_groups * a.ssm_state_size) + a.mamba_num_heads
    return {
        "word_embeddings": (a.hidden_size, a.vocab_size // tensor), "output_layer": (a.hidden_size, a.vocab_size // tensor),
        "in_proj": (a.hidden_size, mamba // tensor), "out_proj": (inner // tensor, a.hidden_size),
        "linear_qkv": (a.hidden_size, (heads + 2 * a.num_key_value_heads * a.head_dim) // tensor),
        "linear_proj": (heads // tensor, a.hidden_size),
        "router": (a.hidden_size, a.n_routed_experts), "fc1_latent_proj": (a.hidden_size, experts),
        "fc2_latent_proj": (experts, a.hidden_size), "experts": (experts, a.moe_intermediate_size),
        "linear_fc1": (a.hidden_size, a.moe_shared_expert_intermediate_size // tensor),
        "linear_fc2": (a.moe_shared_expert_intermediate_size // tensor, a.hidden_size),
        "eh_proj": (2 * a.hidden_size, a.hidden_size // tensor),
    }[path.rpartition(".")[2]]
