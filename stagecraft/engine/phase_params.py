"""Parameters of how the batch grows at the beginning of pre-training, and its rows at the end."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

from stagecraft.contract.bounded import AboveZero, Count, Positive
from stagecraft.contract.params import params
from stagecraft.engine.layout import Layout


@params
class BatchRamp:
    """Growth of the batch at the beginning, as `--rampup-batch-size` of Megatron-LM means it.

    Args:
        steps: before the batch has its full size; 0: it has from the first step on.
        start: rows of the first steps.
        increment: rows by which the batch grows each time. Every size lasts equally many steps; if these do not divide evenly, some sizes
            last one more.
    """

    steps: Count
    start: Positive
    increment: Positive

    def check(self, batch: int, stable: int) -> None:
        """Refuse what cannot grow to `batch` rows, in the `stable` steps before the decay.

        Raises:
            ValueError: it says why.
        """
        if not self.steps:
            return
        if self.start >= batch or (batch - self.start) % self.increment:
            raise ValueError(f"batch_ramp from start {self.start} by increment {self.increment} does not reach global_batch {batch}")
        increments = (batch - self.start) // self.increment
        if not increments <= self.steps <= stable:
            raise ValueError(f"batch_ramp.steps {self.steps} are not between its {increments} increments and the {stable} steps before "
                             "the decay")

    def stretches(self, batch: int) -> list[tuple[range, int]]:
        """(steps, rows of each) until the batch is `batch`."""
        if not self.steps:
            return [(range(0), batch)]
        sizes = range(self.start, batch, self.increment)
        bounds = [self.steps * index // len(sizes) for index in range(len(sizes) + 1)]
        return [(range(*bound), size) for bound, size in zip(pairwise(bounds), sizes)]


@params
class LongContext:
    """The continuation of pre-training in longer rows, after the decay, at a constant rate (arXiv 2604.12374, section 2).

    Args:
        steps: how many; 0: no continuation.
        alternating_steps: how many of these, at the end, alternate: the first and every second after it read rows of `short_length`
            from the decay's blend, with as many tokens as a step of long rows.
        sequence_length: tokens in a row of `blend`.
        global_batch: rows of `sequence_length` per step, over all ranks; `micro_batch` of them in a forward pass of one rank.
        layout: how the model and its rows are divided over the ranks in this phase.
    """

    PLACEMENT: ClassVar = ("layout",)

    steps: Count
    alternating_steps: Count
    blend: Literal["phase1", "phase2", "long"]
    sequence_length: Positive
    short_length: Positive
    global_batch: Positive
    micro_batch: Positive
    lr: AboveZero
    layout: Layout

    def __post_init__(self) -> None:
        if self.alternating_steps > self.steps:
            raise ValueError(f"long_context.alternating_steps {self.alternating_steps} are more than its steps {self.steps}")
        if self.sequence_length % self.short_length:
            raise ValueError(f"long_context.short_length {self.short_length} does not divide its sequence_length {self.sequence_length}")
