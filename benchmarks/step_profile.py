"""Where the time of a training step goes, part by part of the model, forward and backward: for `benchmarks.pretrain --profile`."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from stagecraft.engine.batch import Batch
from stagecraft.engine.trainer import Trainer
from stagecraft.model import products

ROUTING, EXPERTS, DENSE = "routing and dispatch", "routed experts", "shared expert, latent projections"
ATTENTION, PROJECTIONS, SCAN = "attention, its projections", "Mamba-2's projections and norm", "Mamba-2's convolution, scan and gate"
HEAD, LOSS, OPTIMIZER = "embedding, head", "cross-entropy", "optimizer, norm and clipping of gradients"
GRADIENTS, REST, PYTHON = "adding gradients up", "the rest: norms, residuals, masks", "Python between operators"
PARTS = (PROJECTIONS, SCAN, ATTENTION, ROUTING, EXPERTS, DENSE, HEAD, LOSS, OPTIMIZER, GRADIENTS, REST, PYTHON)
MODULES = {"MambaMixer": PROJECTIONS, "SelfAttention": ATTENTION, "MoELayer": ROUTING, "GroupedExperts": EXPERTS, "SharedExpertMLP": DENSE,
           "DuplicatedLinear": DENSE, "LanguageModelEmbedding": HEAD, "ColumnParallelLinear": HEAD}  # the innermost one counts
OPERATORS = {"ConvScan": SCAN, "_CrossEntropy": LOSS}
GROUPED = "the experts' products in one call"  # which the profiler does not see by itself
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::_grouped_mm", GROUPED)
_RANGE, _BACKWARD = "part: ", "autograd::engine::evaluate_function"
_WARM_UP, _TIMED = 3, 3  # steps: that compile and allocate; that tell the time without the profiler


def show(trainer: Trainer, batches: Sequence[Batch], what: str, rate: float, console: Console) -> None:
    """Print shares of one step's CPU time by part, in all and in dense products, of which `rate` FLOP per CPU second are the limit."""
    torch.set_num_threads(1)
    for _ in range(_WARM_UP):
        trainer.step(batches)
    usual = statistics.median(_seconds(lambda: trainer.step(batches)) for _ in range(_TIMED))
    with _marked(trainer) as grouped, profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiled:
        with record_function(f"{_RANGE}step"):
            trainer.step(batches)
    events = profiled.events()
    times, in_products, calls = shares(events)
    total, flop = sum(times.values()), sum(grouped) + sum(event.flops or 0 for event in events if event.name in PRODUCTS)
    console.print(f"{what}: {usual:.3f} CPU s ({total / 1e6:.3f} under the profiler); its {flop / 1e9:.1f} GFLOP of dense products take "
                  f"{flop / rate:.3f} at the rate above: without all else it would be {usual * rate / flop:.2f} x as fast")
    table = Table()
    for column in ("part", "share", "of it products", "operators"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in PARTS:
        table.add_row(part, f"{times[part] / total:.1%}", f"{in_products[part] / total:.1%}", str(calls[part]))
    table.add_row("all", "100.0%", f"{sum(in_products.values()) / total:.1%}", str(sum(calls.values())))
    console.print(table)


def shares(events: Sequence[FunctionEvent]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """By part: microseconds, microseconds in dense products, operators.

    An operator of the backward pass is of the part in which autograd recorded it.
    """
    recorded: dict[int, str] = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.sequence_nr >= 0 and not any(node.name.startswith(_BACKWARD) for node in _upwards(event)):
            recorded[event.sequence_nr] = _part(event, {})
    times, in_products, calls = Counter(), Counter(), Counter()
    for event in events:
        part = PYTHON if event.name.startswith(_RANGE) else _part(event, recorded)
        times[part] += event.self_cpu_time_total
        calls[part] += not event.name.startswith(_RANGE)
        if event.name in PRODUCTS:
            in_products[part] += event.self_cpu_time_total
    return times, in_products, calls


def _upwards(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The event, what it was called in, and so on."""
    while event is not None:
        yield event
        event = event.cpu_parent


def _part(event: FunctionEvent, recorded: dict[int, str]) -> str:
    for node in _upwards(event):
        if node.name in OPERATORS:
            return OPERATORS[node.name]
        if node.name.startswith(_BACKWARD):
            return recorded.get(node.sequence_nr, GRADIENTS)
        if (name := node.name.removeprefix(_RANGE)) in PARTS:
            return name
    return REST


@contextmanager
def _marked(trainer: Trainer) -> Iterator[list[int]]:
    """Inside the block the profiler sees which part of the model an operator is of. Gives the FLOPs of the experts' products."""
    handles, ranges, grouped = [], [], []

    def enter(part: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            ranges.append(record_function(f"{_RANGE}{part}"))
            ranges[-1].__enter__()
        return hook

    def leave(*_: Any) -> None:
        ranges.pop().__exit__(None, None, None)

    for module in trainer.module.modules():
        if part := MODULES.get(type(module).__name__):
            handles += [module.register_forward_pre_hook(enter(part)), module.register_forward_hook(leave)]
    def counted(what: str, bounds: list[int], w: Tensor, *tensors: Tensor) -> None:
        grouped.append(2 * bounds[-1] * w[0].numel())
        with record_function(GROUPED):
            multiply(what, bounds, w, *tensors)

    multiply, products._grouped = products._grouped, counted
    for name in ("prepare_grads", "get_grad_norm", "step"):
        setattr(trainer.optimizer, name, _in_range(OPTIMIZER, getattr(trainer.optimizer, name)))
    try:
        yield grouped
    finally:
        products._grouped = multiply
        for handle in handles:
            handle.remove()
        for name in ("prepare_grads", "get_grad_norm", "step"):
            delattr(trainer.optimizer, name)


def _in_range(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def marked(*args: Any, **options: Any) -> Any:
        with record_function(f"{_RANGE}{part}"):
            return function(*args, **options)
    return marked


def _seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
