"""How many parameters an architecture has, and how many of them a token reads: counted from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from stagecraft.planning.architecture import Model, Shapes, nemotron_h


@dataclass(frozen=True)
class Counts:
    """Parameters of one model.

    Attributes:
        total: every trained parameter outside the MTP block: embedding, head, layers, norms. The router's expert bias is a
            buffer that no gradient reaches, so it is not counted; transformers counts in the same way.
        active: of `total`, what one token reads: the `num_experts_per_tok` routed experts of each MoE layer instead of all,
            and everything else in full, the whole embedding table and head included.
        mtp: the multi-token prediction block, once, however many depths share it; it uses the backbone's embedding and head.
        routed: of `total`, the routed experts, which are what low precision is mostly about.
    """

    total: int
    active: int
    mtp: int
    routed: int


def count_parameters(shapes: Shapes) -> Counts:
    """Count the parameters of a hybrid Mamba-2 / attention / MoE model.

    With the shapes of the 120B model this gives 120.67B in all, 12.77B active and 2.94B in the MTP block
    (arXiv 2604.12374, table 1, prints 120.6B and 12.7B): the active figure is reached only with embedding and head counted.

    Raises:
        ValueError: a pattern holds a letter other than M (Mamba-2), * (attention), E (mixture of experts).
    """
    return count(nemotron_h(shapes))


def count(model: Model) -> Counts:
    """Count the parameters of a model given as layers."""
    ends = 2 * model.embedding + model.hidden  # embedding, head, final norm
    total = ends + sum(layer.held for layer in model.layers)
    active = ends + sum(layer.active for layer in model.layers)
    routed = sum(product.held for layer in model.layers for product in layer.named("expert"))
    return Counts(total=total, active=active, mtp=sum(layer.held for layer in model.mtp), routed=routed)
