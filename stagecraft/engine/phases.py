"""The two phases of pre-training as rows of the corpus's blends: the second blend begins with the decay of the learning rate.

A row's number says which blend it is of and where in it, so that training, resuming and lineage agree, whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """Rows first, ..., first + rows - 1 of the training are rows 0, ..., rows - 1 of `blend`."""

    blend: str
    first: int
    rows: int


def phases(blend: str, decay_blend: str, *, steps: int, decay_steps: int, global_batch: int) -> list[Phase]:
    """The phases in their order; one, where both have the same blend or there is no decay."""
    if decay_blend == blend or not decay_steps:
        return [Phase(blend, 0, steps * global_batch)]
    stable, decay = (steps - decay_steps) * global_batch, decay_steps * global_batch
    return [phase for phase in (Phase(blend, 0, stable), Phase(decay_blend, stable, decay)) if phase.rows]


def phase_of(row: int, all_phases: list[Phase]) -> Phase:
    """The phase of a row.

    Raises:
        IndexError: the training has no such row.
    """
    for phase in all_phases:
        if phase.first <= row < phase.first + phase.rows:
            return phase
    raise IndexError(f"row {row}: the training had {sum(phase.rows for phase in all_phases)} rows")


def rows_read(row: int, all_phases: list[Phase]) -> dict[str, int]:
    """How many rows of each blend come before `row`: where the sampler stands, as checkpoints record it."""
    return {phase.blend: min(max(row - phase.first, 0), phase.rows) for phase in all_phases}
