"""The phases of pre-training as rows of the corpus's blends: the second blend begins with the decay of the learning rate, rows of more
tokens after it.

A row's number says which phase it is of and where in it, so that training, resuming and lineage agree, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from stagecraft.engine.phase_params import BatchRamp, LongContext


@dataclass(frozen=True)
class Stretch:
    """Steps of the training, counted from 0, each of which reads `batch` rows, over all ranks."""

    steps: range
    batch: int

    def before(self, step: int) -> int:
        """Rows that those of the steps that are before `step` read."""
        return self.batch * len(range(self.steps.start, max(self.steps.start, min(self.steps.stop, step)), self.steps.step))


@dataclass(frozen=True)
class Phase:
    """Rows first, ..., first + rows - 1 of the training are rows 0, ..., rows - 1 of `blend` in rows of `length` tokens.

    Args:
        number: among the phases. Each reads in an order of its own: blends share files, and one order would give every phase the same
            documents first.
        micro: rows of a forward pass.
        stretches: the steps that read this phase.
    """

    number: int
    blend: str
    first: int
    length: int
    micro: int
    stretches: tuple[Stretch, ...]

    @property
    def rows(self) -> int:
        return sum(len(stretch.steps) * stretch.batch for stretch in self.stretches)

    @property
    def batches(self) -> set[int]:
        """Rows of a step: one number, or, while the batch grows, several."""
        return {stretch.batch for stretch in self.stretches if stretch.steps}

    @property
    def start(self) -> int:
        """The first step."""
        return min(stretch.steps.start for stretch in self.stretches if stretch.steps)

    def before(self, step: int) -> int:
        """Rows of this phase that the steps before `step` read."""
        return sum(stretch.before(step) for stretch in self.stretches)


def phases(blend: str, decay_blend: str, *, steps: int, decay_steps: int, length: int, batch: int, micro: int = 1,
           ramp: BatchRamp | None = None, long: LongContext | None = None) -> list[Phase]:
    """The phases in the order of their rows; one, where both blends are the same or there is no decay, and no long context."""
    stable = steps if decay_blend == blend or not decay_steps else steps - decay_steps
    growing = ramp.stretches(batch) if ramp else [(range(0), batch)]
    full = growing[-1][0].stop
    parts = [(blend, length, micro, [*growing, (range(full, stable), batch)]),
             (decay_blend, length, micro, [(range(stable, steps), batch)])]
    if long and long.steps:
        end, times = steps + long.steps, long.sequence_length // long.short_length
        alternating = end - long.alternating_steps
        parts += [(long.blend, long.sequence_length, long.micro_batch,
                   [(range(steps, alternating), long.global_batch), (range(alternating + 1, end, 2), long.global_batch)]),
                  (decay_blend, long.short_length, long.micro_batch * times, [(range(alternating, end, 2), long.global_batch * times)])]
    found: list[Phase] = []
    for name, length_, micro_, stretches in parts:
        first = found[-1].first + found[-1].rows if found else 0
        phase = Phase(len(found), name, first, length_, micro_, tuple(Stretch(*stretch) for stretch in stretches))
        if phase.rows:
            found.append(phase)
    return found


def read_at(step: int, all_phases: list[Phase]) -> tuple[Phase, int, int]:
    """The phase that step `step` (counted from 0) reads, the first of its rows there, and how many.

    Raises:
        IndexError: the training has no such step.
    """
    for phase in all_phases:
        for stretch in phase.stretches:
            if step in stretch.steps:
                return phase, phase.before(step), stretch.batch
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
    return {f"{phase.blend} from step {phase.start}": phase.before(step) for phase in all_phases}
