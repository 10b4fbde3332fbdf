"""What the stage trains beside the policy, on given sequences: the MTP block and a reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from components.rl.params import Stage
from stagecraft.contract.runlog import RunLog
from stagecraft.data.packing import packs_of_passes
from stagecraft.engine import loop
from stagecraft.engine.packs import own_packs, packed_batch
from stagecraft.engine.trainer import StepResult, Trainer
from stagecraft.engine.watchdog import of_this_rank

MAX_SKIPPED = 3  # steps in a row, of the policy too, for a loss or gradient that is no finite number; one more ends the run


def train_on(trainer: Trainer, sequences: Sequence[tuple[Sequence[int], Sequence[float]]], params: Stage, name: str, work: Path,
             log: RunLog | None) -> None:
    """Train by the trainer's schedule, a pack a step; every rank runs it; resumable at every checkpoint in `training(work, name)`.

    Args:
        sequences: (ids, loss mask) each, in the same order on every rank.
        name: of the training and its curve.
        work: the run's directory.
        log: on rank 0 only.

    Raises:
        UserError: as `loop.run`.
    """
    title = name.replace("_", " ")
    packs = packs_of_passes([len(ids) - 1 for ids, _ in sequences], params.pack_tokens, trainer.optimization.steps,
                            f"{params.seed}/{title}")

    def step() -> StepResult:
        own = own_packs([packs[trainer.steps_done]])
        result = trainer.step([packed_batch([sequences[index] for index in pack]) for pack in own])
        # An MTP block that is trained here is all that is: the model's own loss stays.
        return replace(result, loss=fmean(result.mtp_losses)) if result.mtp_losses else result

    with of_this_rank(work, params.hang_seconds) as watchdog:
        loop.run(trainer, step, name=title, curve=name, work=training(work, name), checkpoint_every=params.checkpoint_every, log=log,
                 max_skipped=MAX_SKIPPED, beat=watchdog.beat)


def training(work: Path, name: str) -> Path:
    """Where the checkpoints of a training are."""
    return work / f"{name}_training"
