"""Bytes that one GPU sends in a training step, per parallel dimension, and the time they take over NVLink and the network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import comb

from stagecraft.planning.architecture import Attention, Model, Scan
from stagecraft.planning.formats import Formats
from stagecraft.planning.hardware import Efficiencies, Gpu
from stagecraft.planning.layout import Layout, Workload
from stagecraft.planning.memory import State, local_parameters
from stagecraft.planning.placement import Stage, stages

DIMENSIONS = ("tensor", "expert", "context", "data", "pipeline")


@dataclass(frozen=True)
class Traffic:
    """Bytes sent by one GPU, over NVLink and over its network adapter."""

    nvlink: float = 0.0
    network: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.nvlink + other.nvlink, self.network + other.network)

    def __mul__(self, times: float) -> Traffic:
        return Traffic(self.nvlink * times, self.network * times)

    def seconds(self, gpu: Gpu, efficiency: Efficiencies) -> float:
        """Both links at once: the slower one counts."""
        return max(self.nvlink / (gpu.nvlink * efficiency.nvlink), self.network / (gpu.network * efficiency.network))


def collective(size: float, members: int, stride: int, domain: int) -> Traffic:
    """An all-gather or reduce-scatter of `size` bytes over `members` ranks that are `stride` apart.

    Over several NVLink domains it goes in two steps, and the adapters of a domain's members share the second.
    """
    if members == 1:
        return Traffic()
    near = max(1, min(members, domain // stride))
    domains = -(-members // near)
    if domains == 1:
        return Traffic(nvlink=size * (members - 1) / members)
    return Traffic(size * (near - 1) / near, size * (domains - 1) / domains / near)


def reached(groups: int, experts: int, chosen: int) -> float:
    """How many of `groups` equal groups of experts hold one of a token's `chosen`, on average; routing uniform, without repetition."""
    return groups * (1 - comb(experts - experts // groups, chosen) / comb(experts, chosen))


def training_traffic(model: Model, work: Workload, layout: Layout, recipe: Formats, domain: int,
                     state: State | None = None) -> dict[str, Traffic]:
    """Per GPU and step, by dimension; of the pipeline stage that sends most in each."""
    totals: dict[str, Traffic] = {name: Traffic() for name in DIMENSIONS}
    for stage in stages(model, layout, recipe, work.mtp_depths):
        for name, traffic in _stage(stage, model, work, layout, state or State.of(recipe), domain).items():
            totals[name] = max(totals[name], traffic, key=lambda t: t.nvlink + t.network)
    return totals


def _stage(stage: Stage, model: Model, work: Workload, layout: Layout, state: State, domain: int) -> dict[str, Traffic]:
    m, act = layout.microbatches(work), state.activation
    tokens = layout.micro * work.length / layout.cp
    again = 1 if layout.recompute == "full" else 0  # the forward pass's share is sent once more
    experts_again = 1 if layout.recompute in ("moe", "full") else 0
    sent: Counter[str] = Counter()
    experts = Traffic()
    for branch in stage.branches:
        layer, passes = branch.layer, branch.times * branch.passes
        if any(placed.product.split == "tensor" for placed in branch.placed):
            # Forward all-gather and reduce-scatter; backward both again, and the all-gather for the weight gradient.
            sent["tensor"] += passes * (5 + 2 * again) * tokens * model.hidden * act
        for placed in branch.placed:
            if placed.product.operator == "experts up" and layout.ep > 1:
                experts += _all_to_all(placed.product.copies, placed.product.used, layout.ep, domain) * (
                    passes * (4 + 2 * experts_again) * tokens / layout.tp * placed.product.inputs * act)  # to the experts and back, twice
        if isinstance(layer.core, Attention):  # keys and values go round; backward they and their gradients do
            sent["context"] += passes * (3 + again) * layout.cp * tokens * 2 * layer.core.keys(layout.tp) * layer.core.dim * act / layout.tp
        if isinstance(layer.core, Scan):  # from sequence to heads and back
            width = layer.core.channels + 2 * layer.core.heads * layer.core.dim
            sent["context"] += passes * (2 + again) * tokens * width * act / layout.tp
    if stage.heads:
        sent["tensor"] += stage.heads * 3 * tokens * model.hidden * act
    tensors, expert = local_parameters(stage, model, layout)
    dense = sum(tensors)
    per_parameter = state.gradient + state.weight  # gradients reduce-scattered, new weights all-gathered
    inner = layout.tp * layout.cp
    return {
        "tensor": collective(m * sent["tensor"], layout.tp, 1, domain),
        "expert": experts * m,
        "context": collective(m * sent["context"], layout.cp, layout.tp, domain),
        "data": collective(dense * per_parameter, layout.dp * layout.cp, layout.tp, domain)
        + collective(expert * per_parameter, layout.expert_dp, layout.ep, domain),
        "pipeline": _between(2 * m * tokens * model.hidden * act / layout.tp, layout.pp, inner * layout.dp, domain),
    }


def _all_to_all(experts: int, chosen: int, ranks: int, domain: int) -> Traffic:
    """Copies of a token that leave its GPU: one per other rank inside an NVLink domain, one per other domain over the network."""
    domains = max(1, ranks // domain)
    remote = reached(ranks, experts, chosen) * (ranks - 1) / ranks
    return Traffic(remote, reached(domains, experts, chosen) * (domains - 1) / domains if domains > 1 else 0.0)


def _between(size: float, stages: int, stride: int, domain: int) -> Traffic:
    if stages == 1:
        return Traffic()
    return Traffic(nvlink=size) if stages * stride <= domain else Traffic(network=size)
