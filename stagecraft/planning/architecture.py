"""A model as a list of layers, each a list of matrix products and at most one token mixer: all that counting and timing need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from stagecraft.contract.division import Parts


class Shapes(Parts, Protocol):
    """What is read of a Nemotron-H architecture, besides its parts that are divided."""

    mtp_hybrid_override_pattern: str
    num_nextn_predict_layers: int
    hidden_size: int
    head_dim: int
    mamba_head_dim: int
    ssm_state_size: int
    conv_kernel: int
    chunk_size: int
    num_experts_per_tok: int
    moe_intermediate_size: int
    moe_latent_size: int | None


@dataclass(frozen=True)
class Product:
    """A linear map of every token.

    Attributes:
        operator: what it is, a key of the precision recipes in formats.yaml.
        inputs, outputs: elements per token.
        copies: matrices held, `used`: of them, those that one token passes (routed experts; 1 and 1 otherwise).
        bias: further parameters of each copy.
        split: "tensor": over the tensor-parallel ranks; "expert": over the expert-parallel ranks; "none": whole on every rank.
    """

    operator: str
    inputs: int
    outputs: int
    copies: int = 1
    used: int = 1
    bias: int = 0
    split: str = "tensor"

    @property
    def held(self) -> int:
        """Parameters."""
        return self.copies * (self.inputs * self.outputs + self.bias)

    @property
    def active(self) -> int:
        """Parameters that one token passes."""
        return self.used * (self.inputs * self.outputs + self.bias)


@dataclass(frozen=True)
class Attention:
    """Causal softmax attention; `window` limits how many tokens back it looks."""

    heads: int
    kv_heads: int
    dim: int
    window: int | None = None

    def keys(self, ranks: int) -> int:
        """Heads of keys that so many tensor-parallel ranks hold together: with fewer heads than ranks, each has a copy of one."""
        return max(self.kv_heads, ranks)

    def seen(self, tokens: float) -> float:
        """Tokens attended to by the last of `tokens`."""
        return min(tokens, self.window) if self.window else tokens

    def mean_seen(self, length: int) -> float:
        """Tokens attended to, itself included, averaged over a sequence of `length`."""
        window = min(self.window or length, length)
        return (window * (window + 1) / 2 + (length - window) * window) / length


@dataclass(frozen=True)
class Scan:
    """A linear recurrence computed in chunks (Mamba-2, gated delta net): `heads` states of `dim` x `state` elements.

    `channels` pass a causal convolution of `kernel` taps before it. `delta` adds the triangular solve of the delta rule.
    """

    heads: int
    dim: int
    state: int
    groups: int
    chunk: int
    channels: int
    kernel: int
    delta: bool = False


@dataclass(frozen=True, eq=False)
class Layer:
    """One residual branch. `vectors`: parameters outside the products (norms, convolution, per-head).

    Equal layers of a model are one object: what groups them asks for identity, which is quick.
    """

    kind: str
    products: tuple[Product, ...]
    vectors: int
    core: Attention | Scan | None = None

    @property
    def held(self) -> int:
        """Parameters."""
        return self.vectors + sum(product.held for product in self.products)

    @property
    def active(self) -> int:
        """Parameters that one token passes."""
        return self.vectors + sum(product.active for product in self.products)

    def named(self, split: str) -> tuple[Product, ...]:
        """The products with this way of splitting."""
        return tuple(product for product in self.products if product.split == split)


@dataclass(frozen=True)
class Model:
    """`layers` of the backbone; `mtp` is one multi-token prediction block, empty if there is none; `parts` None: not our engine's family.

    An embedding table, a final norm and a head, not tied to the table, come besides.
    """

    name: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    mtp: tuple[Layer, ...] = ()
    parts: Parts | None = None

    @property
    def embedding(self) -> int:
        """Parameters of the embedding table; the head has as many."""
        return self.hidden * self.vocabulary

    @property
    def head(self) -> Product:
        """The output projection."""
        return Product("head", self.hidden, self.vocabulary)

    def of(self, kind: str) -> Iterator[Layer]:
        """Layers of a kind in the backbone."""
        return (layer for layer in self.layers if layer.kind == kind)


def nemotron_h(shapes: Shapes, name: str = "nemotron_h") -> Model:
    """The hybrid Mamba-2 / attention / MoE model of these shapes.

    Raises:
        ValueError: a pattern holds a letter other than M (Mamba-2), * (attention), E (mixture of experts).
    """
    made = {letter: _layer(letter, shapes) for letter in dict.fromkeys(shapes.hybrid_override_pattern)}
    layers = tuple(made[letter] for letter in shapes.hybrid_override_pattern)
    mtp: tuple[Layer, ...] = ()
    if shapes.num_nextn_predict_layers:
        joint = Layer("join", (Product("mtp join", 2 * shapes.hidden_size, shapes.hidden_size),), 3 * shapes.hidden_size)
        mtp = (joint, *(_layer(letter, shapes) for letter in shapes.mtp_hybrid_override_pattern))
    return Model(name, shapes.hidden_size, shapes.vocab_size, layers, mtp, shapes)


def _layer(letter: str, shapes: Shapes) -> Layer:
    makers = {"M": _mamba, "*": _attention, "E": _experts}
    if letter not in makers:
        raise ValueError(f"layer pattern holds {letter!r}; known are M (Mamba-2), * (attention), E (mixture of experts)")
    return makers[letter](shapes)


def _mamba(s: Shapes) -> Layer:
    inner = s.mamba_num_heads * s.mamba_head_dim
    channels = inner + 2 * s.n_groups * s.ssm_state_size  # x, B and C pass through the causal convolution
    vectors = s.hidden_size + channels * (s.conv_kernel + 1) + 3 * s.mamba_num_heads + inner  # A_log, D, dt_bias; gated norm
    return Layer("mamba", (Product("mamba in", s.hidden_size, inner + channels + s.mamba_num_heads),  # z; x, B, C; dt
                           Product("mamba out", inner, s.hidden_size)), vectors,
                 Scan(s.mamba_num_heads, s.mamba_head_dim, s.ssm_state_size, s.n_groups, s.chunk_size, channels, s.conv_kernel))


def _attention(s: Shapes) -> Layer:
    queries = s.num_attention_heads * s.head_dim
    return Layer("attention", (Product("qkv", s.hidden_size, queries + 2 * s.num_key_value_heads * s.head_dim),
                               Product("attention out", queries, s.hidden_size)), s.hidden_size,
                 Attention(s.num_attention_heads, s.num_key_value_heads, s.head_dim))


def _experts(s: Shapes) -> Layer:
    width = s.moe_latent_size or s.hidden_size
    experts = {"copies": s.n_routed_experts, "used": s.num_experts_per_tok, "split": "expert"}
    latent = (Product("latent", s.hidden_size, width, split="none"), Product("latent", width, s.hidden_size, split="none"))
    return Layer("moe", (
        Product("router", s.hidden_size, s.n_routed_experts, split="none"),
        *(latent if s.moe_latent_size else ()),
        Product("experts up", width, s.moe_intermediate_size, **experts),
        Product("experts down", s.moe_intermediate_size, width, **experts),
        Product("shared", s.hidden_size, s.moe_shared_expert_intermediate_size),
        Product("shared", s.moe_shared_expert_intermediate_size, s.hidden_size)), s.hidden_size)
