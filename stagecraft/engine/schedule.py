"""Parameters that every supervised stage has: optimizer and learning-rate schedule."""

from __future__ import annotations

from typing import ClassVar

from stagecraft.contract.bounded import AboveZero, Count, NonNegative, Positive
from stagecraft.contract.params import params

OPTIMIZERS = ("adamw", "muon")


@params
class Schedule:
    """Warm-up to `lr`, stable, minus-sqrt decay to `min_lr` over the last `decay_steps` (0: constant). Rates are per step.

    A stage has besides them `processes` and `layout`: on other ranks the work goes on from the checkpoint that is there.
    """

    # How often to save and when to give up is of no consequence for what is computed either, and is what one changes after a kill.
    PLACEMENT: ClassVar = ("processes", "layout", "checkpoint_every", "keep_checkpoints", "max_skipped_steps", "hang_seconds")

    steps: Positive
    optimizer: str
    muon_lr_scale: AboveZero
    lr: AboveZero
    min_lr: NonNegative
    warmup_steps: Count
    decay_steps: Count
    weight_decay: NonNegative
    clip: AboveZero
    mtp_depths: Count
    mtp_loss_scale: NonNegative
    checkpoint_every: Positive
    keep_checkpoints: Positive
    max_skipped_steps: Count
    hang_seconds: Count

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps} is more than steps {self.steps}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
