"""The phases of pre-training as rows of the corpus's blends: the second blend begins with the decay of the learning rate, rows of more
tokens after it.

A row's number says which phase it is of and where in it, so that training, resuming and lineage agree, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagecraft.engine.schedule import LongContext


@dataclass(frozen=True)
class Phase:
    """Rows first, ..., first + rows - 1 of the training are rows 0, ..., rows - 1 of `blend` in rows of `length` tokens.

    Args:
        batch: rows of a step, over all ranks; `micro` of them in a forward pass.
        steps: of the training, counted from 0, that read this phase.
    """

    blend: str
    first: int
    length: int
    batch: int
    micro: int
    steps: tuple[range, ...]

    @property
    def rows(self) -> int:
        return self.before(max(steps.stop for steps in self.steps))

    def before(self, step: int) -> int:
        """Rows of this phase that the steps before `step` read."""
        return self.batch * sum(len(range(steps.start, max(steps.start, min(steps.stop, step)), steps.step)) for steps in self.steps)


def phases(blend: str, decay_blend: str, *, steps: int, decay_steps: int, length: int, batch: int, micro: int = 1,
           long: LongContext | None = None) -> list[Phase]:
    """The phases in the order of their rows; one, where both blends are the same or there is no decay, and no long context."""
    stable = steps if decay_blend == blend or not decay_steps else steps - decay_steps
    parts = [(blend, length, batch, micro, (range(stable),)), (decay_blend, length, batch, micro, (range(stable, steps),))]
    if long and long.steps:
        end, times = steps + long.steps, long.sequence_length // long.short_length
        alternating = end - long.alternating_steps
        parts += [(long.blend, long.sequence_length, long.global_batch, long.micro_batch,
                   (range(steps, alternating), range(alternating + 1, end, 2))),
                  (decay_blend, long.short_length, long.global_batch * times, long.micro_batch * times, (range(alternating, end, 2),))]
    found: list[Phase] = []
    for name, length_, batch_, micro_, of_steps in parts:
        first = found[-1].first + found[-1].rows if found else 0
        phase = Phase(name, first, length_, batch_, micro_, of_steps)
        if phase.rows:
            found.append(phase)
    return found


def read_at(step: int, all_phases: list[Phase]) -> tuple[Phase, int]:
    """The phase that step `step` (counted from 0) reads, and the first of its rows there.

    Raises:
        IndexError: the training has no such step.
    """
    for phase in all_phases:
        if any(step in steps for steps in phase.steps):
            return phase, phase.before(step)
    raise IndexError(f"step {step} is none of the training")


def phase_of(row: int, all_phases: list[Phase]) -> Phase:
    """The phase of a row.

    Raises:
        IndexError: the training has no such row.
    """
    for phase in all_phases:
        if phase.first <= row < phase.first + phase.rows:
            return phase
    raise IndexError(f"row {row}: the training had {sum(phase.rows for phase in all_phases)} rows")


def rows_read(step: int, all_phases: list[Phase]) -> dict[str, int]:
    """How many rows of each phase the steps before `step` read: where the sampler stands, as checkpoints record it."""
    return {f"{phase.blend} from step {phase.steps[0].start}": phase.before(step) for phase in all_phases}
