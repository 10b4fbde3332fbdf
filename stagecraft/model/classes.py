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
