"""Time of a training step by roofline: every operator takes the longer of its arithmetic and its memory traffic.

Layers follow one another, so times add; what communication does not hide behind them is added too, and a pipeline's empty places.
What no term describes (gaps between kernels, uneven experts, stragglers, input) is one stated share, `sustained`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from stagecraft.planning.architecture import Attention, Model, Scan
from stagecraft.planning.communication import training_traffic
from stagecraft.planning.flops import attention_flops, scan_flops, training_flops
from stagecraft.planning.formats import Formats, bytes_of
from stagecraft.planning.hardware import Efficiencies, Gpu
from stagecraft.planning.layout import Layout, Workload
from stagecraft.planning.memory import State, local_parameters
from stagecraft.planning.placement import Branch, Placed, Stage, stages


@dataclass(frozen=True)
class Kernels:
    """Memory passes that depend on how the kernels are written; the defaults are fused GPU kernels.

    Attributes:
        norm: elements of the hidden state read or written by a residual addition with the norm after it, forward.
        activation: times an activation function's input and output are read or written, forward.
        convolution: passes over the convolved channels.
        scan: passes over the [heads, chunk] decay and score matrices per token, in FP32; 0 when they stay on the chip.
        scan_inner: further passes over its inputs and outputs, in FP32.
        loss: passes over the FP32 logits, forward and backward together.
        optimizer: passes over its state, in passes of a fused optimizer.
        backward: elementwise traffic of the backward pass, in forward passes.
    """

    norm: float = 4.0
    activation: float = 1.0
    convolution: float = 2.0
    scan: float = 0.0
    scan_inner: float = 0.0
    loss: float = 5.0
    optimizer: float = 1.0
    backward: float = 2.0


@dataclass(frozen=True)
class Step:
    """One optimizer step. `seconds` is the sum of `parts` (seconds by operator, communication, bubble, optimizer)."""

    seconds: float
    parts: dict[str, float]
    tokens: int
    gpus: int
    flops_per_token: float

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens per second and GPU."""
        return self.tokens / self.seconds / self.gpus

    @property
    def flops_per_gpu(self) -> float:
        """Model FLOP/s per GPU."""
        return self.flops_per_token * self.tokens_per_gpu


@dataclass(frozen=True)
class Roofline:
    """The machine, its efficiencies and kernels: turns work into seconds."""

    gpu: Gpu
    efficiency: Efficiencies
    kernels: Kernels = Kernels()

    def gemm(self, flops: float, moved: float, wanted: str) -> float:
        """Seconds of matrix products in a format."""
        name = self.gpu.format(wanted)
        return max(flops / (self.gpu.peak[name] * self.efficiency.gemm[name]), self.memory(moved))

    def core(self, flops: float, moved: float, share: float) -> float:
        """Seconds of attention or scan, which compute in BF16 (in FP32 where the machine has no BF16)."""
        peak = self.gpu.peak[self.gpu.format("bfloat16")]
        return max(flops / (peak * share), self.memory(moved))

    def memory(self, moved: float) -> float:
        """Seconds to read or write so many bytes."""
        return moved / (self.gpu.bandwidth * self.efficiency.memory)


def training_step(model: Model, work: Workload, layout: Layout, roofline: Roofline, recipe: Formats, state: State | None = None) -> Step:
    """Predict one step of the slowest pipeline stage."""
    state = state or State.of(recipe)
    m = layout.microbatches(work)
    slowest: Counter[str] = Counter()
    optimizer = 0.0
    for stage in stages(model, layout, recipe, work.mtp_depths):
        parts = _microbatch(stage, model, work, layout, roofline, state)
        slowest = max(slowest, parts, key=lambda counter: sum(counter.values()))
        tensors, experts = local_parameters(stage, model, layout)
        dense = sum(tensors)
        own = dense / (layout.dp * layout.cp) + experts / layout.expert_dp
        # Master weight and moments read and written, gradient read; working weight written.
        moved = own * (2 * state.optimizer + state.gradient + state.weight)
        optimizer = max(optimizer, roofline.memory(roofline.kernels.optimizer * moved))
    parts = Counter({name: m * seconds for name, seconds in slowest.items()})
    parts["optimizer"] = optimizer
    if layout.pp > 1:
        parts["pipeline bubble"] = (layout.pp - 1) * sum(slowest.values())
    hidden = roofline.efficiency.overlap
    for name, traffic in training_traffic(model, work, layout, recipe, roofline.gpu.domain, state).items():
        seconds = traffic.seconds(roofline.gpu, roofline.efficiency) * (1 - getattr(hidden, name))
        if seconds:
            parts[f"{name} communication"] = seconds
    parts["not modelled"] = sum(parts.values()) * (1 / roofline.efficiency.sustained - 1)
    flops = sum(training_flops(model, work.length, work.mtp_depths).values())
    return Step(sum(parts.values()), dict(parts), work.tokens, layout.gpus, flops)


def _microbatch(stage: Stage, model: Model, work: Workload, layout: Layout, roofline: Roofline, state: State) -> Counter[str]:
    """Seconds of one microbatch, forward and backward, by operator."""
    tokens = layout.micro * work.length / layout.cp
    parts: Counter[str] = Counter()
    for branch in stage.branches:
        forward, backward = layer_seconds(branch, tokens, work.length, model, layout, roofline, state)
        for name, seconds in forward.items():
            again = layout.recompute == "full" or (layout.recompute == "moe" and branch.layer.kind == "moe")
            parts[name] += branch.times * branch.passes * seconds * (1 + again)
        for name, seconds in backward.items():
            parts[name] += branch.times * branch.passes * seconds
    if stage.heads:
        head = Placed(model.head, model.embedding / layout.tp, "float32" if state.activation == 4 else "bfloat16")
        forward, backward = _product(head, tokens, layout, roofline, state)
        parts["head"] += stage.heads * (forward + backward)
        parts["loss"] += stage.heads * roofline.memory(roofline.kernels.loss * 4 * tokens * model.vocabulary / layout.tp)
    return parts


def layer_seconds(branch: Branch, tokens: float, length: int, model: Model, layout: Layout, roofline: Roofline,
                  state: State) -> tuple[Counter[str], Counter[str]]:
    """(forward, backward) of one pass of a layer over `tokens` tokens of this rank, by operator."""
    forward: Counter[str] = Counter()
    backward: Counter[str] = Counter()
    kernels, core = roofline.kernels, branch.layer.core
    elements = kernels.norm * model.hidden
    for placed in branch.placed:
        product = placed.product
        ahead, back = _product(placed, tokens, layout, roofline, state)
        forward[product.operator] += ahead
        backward[product.operator] += back
        if product.operator in ("shared", "experts up", "experts down"):
            inner = product.outputs if product.operator == "experts up" or product.inputs == model.hidden else product.inputs
            elements += kernels.activation * product.used * inner
        if product.operator == "experts up":
            elements += 4 * product.used * product.inputs  # into the order of the experts and out of it
        if bytes_of(placed.format) < 2:  # read once, written in rows and in columns
            cast = state.activation + 2 * bytes_of(placed.format)
            forward["quantise"] += roofline.memory(tokens / layout.tp * product.used * product.inputs * cast)
            backward["quantise"] += roofline.memory(tokens / layout.tp * product.used * product.outputs * cast)
    if isinstance(core, Attention):
        moved = tokens * 2 * (core.heads + core.keys(layout.tp)) * core.dim * state.activation / layout.tp
        flops = tokens * attention_flops(core, core.mean_seen(length)) / layout.tp
        forward["attention core"] += roofline.core(flops, moved, roofline.efficiency.attention)
        # Five products for the forward pass's two: the scores are computed again (Dao 2023, arXiv 2307.08691).
        backward["attention core"] += roofline.core(2.5 * flops, 2 * moved, roofline.efficiency.attention)
    if isinstance(core, Scan):
        inner = core.heads * core.dim
        chunk = min(core.chunk, length)
        states = 2 * inner * core.state / chunk * 4  # each chunk's state written and read, FP32
        moved = tokens / layout.tp * ((core.channels + 2 * inner) * state.activation + states
                                         + 4 * kernels.scan * core.heads * chunk + 4 * kernels.scan_inner * inner)
        flops = tokens * scan_flops(core, length) / layout.tp
        forward["scan"] += roofline.core(flops, moved, roofline.efficiency.scan)
        backward["scan"] += roofline.core(3 * flops, kernels.backward * moved, roofline.efficiency.scan)  # forward again, two gradients
        elements += kernels.convolution * core.channels + 3 * inner  # gated norm
    ahead = roofline.memory(tokens / layout.tp * elements * state.activation)
    forward["elementwise"] += ahead
    backward["elementwise"] += kernels.backward * ahead
    return forward, backward


def _product(placed: Placed, tokens: float, layout: Layout, roofline: Roofline, state: State) -> tuple[float, float]:
    """(forward, backward): one product and two, each reading its operands in the format and writing activations or FP32 gradients."""
    product, width = placed.product, min(bytes_of(placed.format), state.activation)
    rows = tokens * product.used / layout.tp  # of the output, or of the sequence where the map is whole on every rank
    flops = 2 * rows * product.inputs * product.outputs
    into, out = rows * product.inputs, rows * product.outputs
    weights = placed.held
    forward = roofline.gemm(flops, (into + weights) * width + out * state.activation, placed.format)
    data = roofline.gemm(flops, (out + weights) * width + into * state.activation, placed.format)
    weight = roofline.gemm(flops, (into + out) * width + 2 * weights * state.gradient, placed.format)  # accumulated in place
    return forward, data + weight
