"""Bytes per GPU of a training step: weights, gradients, optimizer, activations, logits; the largest pipeline stage counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stagecraft.planning.architecture import Attention, Model, Scan
from stagecraft.planning.formats import Formats, bytes_of
from stagecraft.planning.layout import Layout, Workload
from stagecraft.planning.placement import Branch, Stage, stages


@dataclass(frozen=True)
class State:
    """Bytes per parameter kept between steps: working weight, gradient, and what the distributed optimizer shares out.

    The defaults are Megatron's mixed precision: BF16 weights, FP32 gradients, FP32 master weights and two FP32 moments;
    the loss turns BF16 logits into their gradient in place, as Transformer Engine's does.
    """

    weight: float = 2.0
    gradient: float = 4.0
    optimizer: float = 12.0
    activation: float = 2.0
    logit: float = 2.0
    whole: bool = False  # each data-parallel rank steps whole tensors, as in megatron-core's layer-wise optimizer, not a part of each

    @classmethod
    def of(cls, recipe: Formats) -> State:
        """FP32 training has no master copy; everything else is the mixed precision."""
        return cls(4.0, 4.0, 8.0, 4.0, 4.0) if recipe.rest == "float32" else cls()


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def training_memory(model: Model, work: Workload, layout: Layout, recipe: Formats, state: State | None = None) -> Memory:
    """Of the stage that needs most."""
    state = state or State.of(recipe)
    parts = [_stage(stage, index, model, work, layout, state)
             for index, stage in enumerate(stages(model, layout, recipe, work.mtp_depths))]
    return max(parts, key=lambda memory: memory.total)


def local_parameters(stage: Stage, model: Model, layout: Layout) -> tuple[list[float], float]:
    """On one GPU: (sizes of the tensors that all data-parallel ranks share, parameters only the expert-data-parallel ranks share)."""
    tables = stage.embedding + bool(stage.heads)
    if stage.heads > 1 and not stage.embedding:
        tables += 1  # the MTP block on the last stage reads the embedding table too
    dense = [model.embedding / layout.tp] * tables + [float(model.hidden)] * bool(stage.heads)
    experts = 0.0
    for branch in stage.branches:
        dense += [branch.layer.vectors] * branch.times
        for placed in branch.placed:
            if placed.product.split == "expert":
                experts += branch.times * placed.held
            else:
                dense += [placed.held] * branch.times
    return dense, experts


def fullest_share(sizes: list[float], ranks: int) -> float:
    """The largest share of whole tensors that are dealt out by size, to `ranks` in turn, forth and back.

    So does megatron-core's `LayerWiseDistributedOptimizer` (`_shard_params_ping_pong`).
    """
    dealt = np.zeros(-(-len(sizes) // (2 * ranks)) * 2 * ranks)
    dealt[:len(sizes)] = np.sort(sizes)
    places = dealt.reshape(-1, 2 * ranks).sum(0)
    return float((places[:ranks] + places[:ranks - 1:-1]).max())


def _stage(stage: Stage, index: int, model: Model, work: Workload, layout: Layout, state: State) -> Memory:
    tensors, experts = local_parameters(stage, model, layout)
    dense, ranks = sum(tensors), layout.dp * layout.cp
    both = dense + experts
    stepped = (fullest_share(tensors, ranks) if state.whole else dense / ranks) + experts / layout.expert_dp
    # Two copies of what computes below BF16: as the forward product reads it, and transposed for the data gradient.
    quantised = sum(2 * branch.times * placed.held * bytes_of(placed.format) for branch in stage.branches for placed in branch.placed
                    if bytes_of(placed.format) < 2)
    tokens = layout.micro * work.length / layout.cp
    flight = min(layout.microbatches(work), layout.pp - index)  # one-forward-one-backward schedule
    saved = sum(branch.times * saved_bytes(branch, tokens, model, layout, state) for branch in stage.branches)
    if layout.recompute in ("moe", "full"):  # the layer that is being computed again has all of its own
        kept = [saved_bytes(branch, tokens, model, layout, state, "none") / branch.passes for branch in stage.branches
                if layout.recompute == "full" or branch.layer.kind == "moe"]
        extra = max(kept, default=0.0)
    else:
        extra = 0.0
    return Memory(
        weights=both * state.weight + quantised,
        gradients=both * state.gradient,
        optimizer=state.optimizer * stepped,
        activations=flight * saved + extra,
        logits=stage.heads * tokens * model.vocabulary / layout.tp * state.logit)  # of every depth, kept for the backward pass


def saved_bytes(branch: Branch, tokens: float, model: Model, layout: Layout, state: State, recompute: str | None = None) -> float:
    """Bytes that the forward passes of one layer leave for its backward pass, on one GPU.

    Saved are the layer's input, each product's input in the format it is multiplied in, what goes into an activation function or a
    core, and the core's output. Sequence parallelism and tensor parallelism divide all of it. The Mamba kernel saves its input and
    output and computes the convolution and the states again, as mamba_ssm does.
    """
    recompute = recompute or layout.recompute
    entry = model.hidden * state.activation
    if recompute == "full":
        return branch.passes * tokens * entry / layout.tp
    if recompute == "moe" and branch.layer.kind == "moe":  # the norm before is no part of what is computed again
        return branch.passes * tokens * 2 * entry / layout.tp
    total, seen = entry, set()
    for index, placed in enumerate(branch.placed):
        product = placed.product
        operand = min(bytes_of(placed.format), state.activation)
        reads_norm = product.inputs == model.hidden and product.split != "expert"
        if reads_norm:
            if operand not in seen:  # products that read the same normed input in one format share it
                total += product.inputs * operand
            seen.add(operand)
        else:
            total += product.used * product.inputs * operand
        following = branch.placed[index + 1].product if index + 1 < len(branch.placed) else None
        if following and product.operator in ("experts up", "shared") and following.operator in ("experts down", "shared"):
            total += product.used * product.outputs * state.activation  # into the activation function
    core = branch.layer.core
    if isinstance(core, Attention):
        seen_keys = 2 * core.keys(layout.tp) * layout.cp  # every context-parallel rank keeps the keys and values of the whole row
        total += (2 * core.heads + seen_keys) * core.dim * state.activation + 4 * core.heads  # q, output, k, v; log-sum-exp
    if isinstance(core, Scan):
        total += (core.channels + 2 * core.heads * core.dim + core.heads) * state.activation  # z, x, B, C, dt; output
    return branch.passes * tokens * total / layout.tp
