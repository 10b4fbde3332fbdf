"""The fastest layout that fits: every layout of a stated space is checked, those that cannot win are skipped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stagecraft.planning.architecture import Model
from stagecraft.planning.formats import Formats
from stagecraft.planning.layout import RECOMPUTE, Layout, Workload, problems
from stagecraft.planning.memory import Memory, State, training_memory
from stagecraft.planning.step import Roofline, Step, training_step

_MICRO = (1, 2, 4, 8)
_CONTEXT = 8192


@dataclass(frozen=True)
class Candidate:
    """A layout with what it needs and how long it takes."""

    layout: Layout
    memory: Memory
    step: Step


@dataclass(frozen=True)
class Found:
    """The best that fits (None: nothing does), the layout that needs least memory, and how many were possible and fitted."""

    best: Candidate | None
    smallest: Candidate
    possible: int
    fitting: int


def powers(limit: int) -> list[int]:
    """1, 2, 4, ... up to `limit`."""
    return [1 << bit for bit in range(limit.bit_length()) if 1 << bit <= limit]


def shapes(gpus: int, work: Workload, domain: int) -> Iterator[Layout]:
    """Sizes of the groups, recomputation aside.

    Powers of two for every model-parallel size; tensor parallelism within an NVLink domain; a sequence is cut no smaller than 8,192
    tokens by context parallelism, which only long ones need; pipeline stages and experts as the numbers allow.
    """
    for tp in powers(min(domain, gpus)):
        for cp in powers(max(1, work.length // _CONTEXT)):
            for pp in powers(gpus):
                if gpus % (tp * cp * pp):
                    continue
                dp = gpus // (tp * cp * pp)
                for ep in powers(tp * cp * dp):
                    for micro in _MICRO:
                        yield Layout(tp, cp, pp, ep, dp, micro)


def search(model: Model, work: Workload, gpus: int, roofline: Roofline, recipe: Formats, state: State | None = None) -> Found:
    """Search for the layout with the shortest step.

    Raises:
        ValueError: no layout of the space is possible, whatever the memory.
    """
    limit = roofline.gpu.memory * roofline.efficiency.memory_use
    best: Candidate | None = None
    smallest: tuple[float, Layout, Memory] | None = None
    possible = fitting = 0
    reasons: list[str] = []
    for shape in shapes(gpus, work, roofline.gpu.domain):
        wrong = next(problems(shape, model, work, gpus), None)
        if wrong:
            reasons.append(wrong)
            continue
        possible += 1
        for recompute in RECOMPUTE:  # each level saves memory and costs time: the first that fits is the fastest that does
            layout = Layout(shape.tp, shape.cp, shape.pp, shape.ep, shape.dp, shape.micro, recompute)
            memory = training_memory(model, work, layout, recipe, state)
            if smallest is None or memory.total < smallest[0]:
                smallest = memory.total, layout, memory
            if memory.total <= limit:
                fitting += 1
                step = training_step(model, work, layout, roofline, recipe, state)
                if best is None or step.seconds < best.step.seconds:
                    best = Candidate(layout, memory, step)
                break
    if smallest is None:
        raise ValueError(reasons[0])
    least = Candidate(smallest[1], smallest[2], training_step(model, work, smallest[1], roofline, recipe, state))
    return Found(best, least, possible, fitting)
