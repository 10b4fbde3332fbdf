"""What one GPU holds of a model under a layout: which layers, which share of each product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from stagecraft.planning.architecture import Layer, Model, Product
from stagecraft.planning.formats import Formats
from stagecraft.planning.layout import Layout


@dataclass(frozen=True)
class Placed:
    """A product on one GPU: parameters held here, and the format they compute in."""

    product: Product
    held: float
    format: str


@dataclass(frozen=True)
class Branch:
    """Equal layers on one GPU: `times` of them, each run `passes` times forward (the MTP block: once per depth)."""

    layer: Layer
    placed: tuple[Placed, ...]
    times: int = 1
    passes: int = 1


@dataclass(frozen=True)
class Stage:
    """A pipeline stage on one GPU. `heads`: output projections computed here (next token and MTP depths); `embedding`: it has the table."""

    branches: tuple[Branch, ...]
    embedding: bool
    heads: int


def local(product: Product, layout: Layout) -> float:
    """Parameters of a product that one GPU holds."""
    return product.held / {"tensor": layout.tp, "expert": layout.ep, "none": 1}[product.split]


def stages(model: Model, layout: Layout, recipe: Formats, mtp_depths: int) -> Iterator[Stage]:
    """The pipeline's stages, of as equal numbers of layers as can be; the MTP block is on the last."""
    count = len(model.layers)
    for index in range(layout.pp):
        own = Counter((layer, tuple(recipe.of(product.operator, layer=at, layers=count) for product in layer.products))
                      for at, layer in enumerate(model.layers) if at * layout.pp // count == index)
        branches = [_branch(layer, names, layout, times) for (layer, names), times in own.items()]
        last = index == layout.pp - 1
        if last and mtp_depths:
            branches += [_branch(layer, tuple(recipe.of(product.operator, mtp=True) for product in layer.products), layout,
                                 passes=mtp_depths) for layer in model.mtp]
        yield Stage(tuple(branches), index == 0, (1 + mtp_depths) if last else 0)


def _branch(layer: Layer, names: tuple[str, ...], layout: Layout, times: int = 1, passes: int = 1) -> Branch:
    placed = tuple(Placed(product, local(product, layout), name) for product, name in zip(layer.products, names))
    return Branch(layer, placed, times, passes)
