"""Serving by roofline: what is resident, how long a decoding step and a prompt take, tokens per second and GPU.

A decoding step reads every dense weight once, the experts that its tokens touch, and each sequence's keys, values and states.
Sequences are spread evenly over their lives (continuous batching), so the mean context is the prompt and half of the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scipy.optimize import brentq

from stagecraft.planning.architecture import Attention, Layer, Model, Product, Scan
from stagecraft.planning.flops import attention_flops, layer_flops, product_flops
from stagecraft.planning.formats import Formats, bytes_of
from stagecraft.planning.step import Roofline


@dataclass(frozen=True)
class Drafts:
    """Multi-token prediction: `length` drafts per step, of which with the certain token `accepted` per step are kept on average."""

    length: int
    accepted: float

    @classmethod
    def expected(cls, length: int, known: tuple[int, float] = (7, 3.45)) -> Drafts:
        """Each draft is accepted with one probability p, so (1 - p^(length + 1)) / (1 - p) are (Leviathan et al. 2023, arXiv 2211.17192).

        p is the one that gives what is `known`: (draft length, mean accepted); the default is the report's on SPEED-Bench
        (arXiv 2604.12374, section 6).
        """
        p = brentq(lambda q: _accepted(q, known[0]) - known[1], 0.0, 1 - 1e-9)
        return cls(length, _accepted(p, length))


@dataclass(frozen=True)
class Serving:
    """One engine on `gpus` GPUs under a steady load.

    Attributes:
        weights: bytes of all weights. sequence: mean bytes of a sequence's cache and states. room: bytes left for sequences.
        resident: sequences at once. decode, prefill: seconds of a decoding step, and of one prompt.
        tokens: generated tokens per second and GPU.
    """

    gpus: int
    weights: float
    sequence: float
    room: float
    resident: int
    decode: float
    prefill: float
    tokens: float


def _accepted(p: float, length: int) -> float:
    return (1 - p ** (length + 1)) / (1 - p)


def weight_bytes(model: Model, recipe: Formats, mtp: bool = False) -> float:
    """All weights: products in their formats, norms and the like in BF16, the embedding table in its own; the MTP block if it drafts."""
    count = len(model.layers)
    total = (model.embedding * (bytes_of(recipe.of("embedding")) + bytes_of(recipe.of("head")))) + 2 * model.hidden
    for at, layer in enumerate(model.layers):
        total += 2 * layer.vectors + sum(p.held * bytes_of(recipe.of(p.operator, layer=at, layers=count)) for p in layer.products)
    for layer in model.mtp if mtp else ():
        total += 2 * layer.vectors + sum(p.held * bytes_of(recipe.of(p.operator, mtp=True)) for p in layer.products)
    return total


def cache_bytes_per_token(layers: Iterable[Layer], recipe: Formats, gpus: int = 1) -> float:
    """Keys and values of a token in the layers that keep all of them."""
    return sum(2 * layer.core.keys(gpus) * layer.core.dim * bytes_of(recipe.cache)
               for layer in layers
               if isinstance(layer.core, Attention) and not layer.core.window)


def fixed_bytes(model: Model, recipe: Formats, gpus: int = 1) -> float:
    """What a sequence keeps whatever its length: recurrent states, the convolutions' last inputs (BF16), full windows."""
    total = 0.0
    for layer in model.layers:
        core = layer.core
        if isinstance(core, Scan):
            total += core.heads * core.dim * core.state * bytes_of(recipe.state) + core.channels * (core.kernel - 1) * 2
        elif isinstance(core, Attention) and core.window:
            total += core.window * 2 * core.keys(gpus) * core.dim * bytes_of(recipe.cache)
    return total


def sequence_bytes(model: Model, recipe: Formats, context: float, mtp: bool = False, gpus: int = 1) -> float:
    """Cache and states of a sequence of `context` tokens on all `gpus`; the MTP block has keys and values of its own."""
    layers = (*model.layers, *model.mtp) if mtp else model.layers
    return context * cache_bytes_per_token(layers, recipe, gpus) + fixed_bytes(model, recipe, gpus)


def touched(product: Product, tokens: float) -> float:
    """How many of its matrices a batch reads, on average; each token chooses `used` of `copies` uniformly."""
    if product.copies == 1:
        return 1.0
    return product.copies * (1 - (1 - product.used / product.copies) ** tokens)


def decode_seconds(model: Model, recipe: Formats, roofline: Roofline, sequences: int, context: float, gpus: int = 1,
                   drafts: Drafts | None = None) -> float:
    """One decoding step of `sequences` sequences at a mean `context`, weights divided over `gpus` by tensor parallelism.

    With drafts the step checks length + 1 tokens of each sequence, and the MTP block has run `length` times before it.
    """
    checked = sequences * (drafts.length + 1 if drafts else 1)
    count = len(model.layers)
    seconds = _head(model, recipe, roofline, checked, gpus)
    for at, layer in enumerate(model.layers):
        names = {p.operator: recipe.of(p.operator, layer=at, layers=count) for p in layer.products}
        seconds += _layer(layer, names, recipe, roofline, sequences, checked, context, gpus)
        seconds += _exchange(model, layer, checked, roofline, gpus)
    if drafts:
        draft = _head(model, recipe, roofline, sequences, gpus)
        for layer in model.mtp:
            names = {p.operator: recipe.of(p.operator, mtp=True) for p in layer.products}
            draft += _layer(layer, names, recipe, roofline, sequences, sequences, context, gpus)
            draft += _exchange(model, layer, sequences, roofline, gpus)
        seconds += drafts.length * draft
    return seconds + roofline.efficiency.serving_step_seconds


def _layer(layer: Layer, names: dict[str, str], recipe: Formats, roofline: Roofline, sequences: int, tokens: float, context: float,
           gpus: int) -> float:
    seconds = 0.0
    for product in layer.products:
        name = names[product.operator]
        read = touched(product, tokens) * (product.inputs * product.outputs + product.bias) * bytes_of(name)
        moved = read + 2 * tokens * product.used * (product.inputs + product.outputs)
        seconds += roofline.gemm(tokens * product_flops(product) / gpus, moved / gpus, recipe.computed(name))
    core = layer.core
    if isinstance(core, Attention):
        seen = core.seen(context)
        moved = sequences * seen * 2 * core.keys(gpus) * core.dim * bytes_of(recipe.cache)
        seconds += roofline.core(tokens * attention_flops(core, seen) / gpus, moved / gpus, roofline.efficiency.attention)
    if isinstance(core, Scan):  # the state is read and written; two multiply-adds for each of its elements per token
        elements = core.heads * core.dim * core.state
        moved = sequences * 2 * (elements * bytes_of(recipe.state) + core.channels * (core.kernel - 1) * 2)
        seconds += max(roofline.memory(moved / gpus), tokens * 4 * elements / gpus / roofline.gpu.peak["float32"])
    return seconds


def _head(model: Model, recipe: Formats, roofline: Roofline, tokens: float, gpus: int) -> float:
    name = recipe.of("head")
    moved = model.embedding * bytes_of(name) + tokens * model.vocabulary * 4
    return roofline.gemm(tokens * product_flops(model.head) / gpus, moved / gpus, name)


def _exchange(model: Model, layer: Layer, tokens: float, roofline: Roofline, gpus: int) -> float:
    """The all-reduce after a layer under tensor parallelism, BF16."""
    if gpus == 1 or not layer.products:
        return 0.0
    return 2 * tokens * model.hidden * 2 * (gpus - 1) / gpus / (roofline.gpu.nvlink * roofline.efficiency.nvlink)


def prefill_seconds(model: Model, recipe: Formats, roofline: Roofline, length: int, gpus: int = 1) -> float:
    """A prompt of `length` tokens in large chunks: weights are read once per 8,192 tokens, arithmetic decides."""
    chunk = min(length, 8192)
    count = len(model.layers)
    seconds = 0.0
    for at, layer in enumerate(model.layers):
        flops = layer_flops(layer, length)
        for product in layer.products:
            name = recipe.of(product.operator, layer=at, layers=count)
            moved = touched(product, chunk) * product.inputs * product.outputs * bytes_of(name) / chunk
            moved += 2 * product.used * (product.inputs + product.outputs)
            seconds += roofline.gemm(product_flops(product) / gpus, moved / gpus, recipe.computed(name))
        if isinstance(layer.core, Attention):
            seconds += roofline.core(flops["attention core"] / gpus, 0, roofline.efficiency.attention)
        if isinstance(layer.core, Scan):
            seconds += roofline.core(flops["scan"] / gpus, 2 * (layer.core.channels + 2 * layer.core.heads * layer.core.dim) / gpus,
                                     roofline.efficiency.scan)
        seconds += roofline.memory(4 * model.hidden * 2 / gpus) + _exchange(model, layer, 1, roofline, gpus)
    return seconds * length


def serve(model: Model, recipe: Formats, roofline: Roofline, prompt: int, answer: int, *, gpus: int = 1, drafts: Drafts | None = None,
          limit: int | None = None) -> Serving:
    """The steady state with as many sequences as fit (at most `limit`).

    A sequence of its own needs `answer` / accepted steps and one prefill, which the others wait for.
    """
    context = prompt + answer / 2
    weights, sequence = weight_bytes(model, recipe, bool(drafts)), sequence_bytes(model, recipe, context, bool(drafts), gpus)
    room = gpus * roofline.gpu.memory * roofline.efficiency.serving_memory_use - weights
    resident = int(room // sequence) if room > 0 else 0
    resident = min(resident, limit) if limit else resident
    prefill = prefill_seconds(model, recipe, roofline, prompt, gpus)
    if resident < 1:
        return Serving(gpus, weights, sequence, room, 0, 0.0, prefill, 0.0)
    decode = decode_seconds(model, recipe, roofline, resident, context, gpus, drafts)
    life = answer / (drafts.accepted if drafts else 1.0) * decode + resident * prefill
    return Serving(gpus, weights, sequence, room, resident, decode, prefill, resident * answer / life / gpus)
