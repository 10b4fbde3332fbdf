"""Floating-point operations per token and operator: two per multiply-add of a matrix product, everything else not counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from stagecraft.planning.architecture import Attention, Layer, Model, Product, Scan

BACKWARD = 2.0
"""A product's backward pass is two products of its size: one for the data, one for the weights."""


def product_flops(product: Product) -> float:
    """Forward, per token."""
    return 2.0 * product.used * product.inputs * product.outputs


def attention_flops(core: Attention, seen: float) -> float:
    """Forward, per token that attends to `seen` tokens: queries by keys, probabilities by values."""
    return 4.0 * core.heads * core.dim * seen


def scan_flops(core: Scan, length: int) -> float:
    """Forward, per token: the products of the chunked form (Dao and Gu 2024, arXiv 2405.21060, section 6).

    Within a chunk of q tokens C B^T per group and its product with x per head; between chunks the states that B and x make and
    the outputs that C reads from them. The delta rule solves for its updates in each chunk besides (Yang et al. 2024,
    arXiv 2412.06464): K K^T, two products with the inverse, and the state's share of the values.
    """
    chunk = min(core.chunk, length)
    inner = core.heads * core.dim
    within = 2.0 * chunk * (core.groups * core.state + inner)
    between = 4.0 * inner * core.state
    if not core.delta:
        return within + between
    return within + between + 2.0 * chunk * (2 * core.heads * core.state + inner) + 2.0 * inner * core.state


def layer_flops(layer: Layer, length: int) -> Counter[str]:
    """Forward, per token of a sequence of `length`, by operator; causal attention counted as the half it is."""
    flops: Counter[str] = Counter()
    for product in layer.products:
        flops[product.operator] += product_flops(product)
    if isinstance(layer.core, Attention):
        flops["attention core"] += attention_flops(layer.core, layer.core.mean_seen(length))
    if isinstance(layer.core, Scan):
        flops["scan"] += scan_flops(layer.core, length)
        flops["convolution"] += 2.0 * layer.core.kernel * layer.core.channels
    return flops


def forward_flops(model: Model, length: int, mtp_depths: int = 0) -> dict[str, float]:
    """Per token and operator, of the backbone, the head and `mtp_depths` passes of the MTP block, each with the head again."""
    flops = _sum(layer_flops(layer, length) for layer in model.layers)
    flops["head"] += product_flops(model.head)
    if mtp_depths:
        block = _sum(layer_flops(layer, length) for layer in model.mtp)
        flops["mtp"] += mtp_depths * (sum(block.values()) + product_flops(model.head))
    return dict(flops)


def training_flops(model: Model, length: int, mtp_depths: int = 0) -> dict[str, float]:
    """Forward and backward, per token and operator; recomputation is not counted (model FLOPs)."""
    return {name: (1 + BACKWARD) * count for name, count in forward_flops(model, length, mtp_depths).items()}


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total
