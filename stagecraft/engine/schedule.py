"""Parameters that every supervised stage has: types of its numbers, optimizer and learning-rate schedule."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stagecraft.contract.params import params

OPTIMIZERS = ("adamw", "muon")

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]


@params
class LongContext:
    """The continuation of pre-training in longer rows, after the decay, at a constant rate (arXiv 2604.12374, section 2).

    Args:
        steps: of it; 0: none.
        alternating_steps: the last of them; every second one, the first of them for one, reads rows of `short_length` of the decay's
            blend, as many tokens as a step of long ones.
        sequence_length: tokens in a row of `blend`.
        global_batch: rows of `sequence_length` per step, over all ranks; `micro_batch` of them in a forward pass of one rank.
    """

    steps: Count
    alternating_steps: Count
    blend: Literal["phase1", "phase2", "long"]
    sequence_length: Positive
    short_length: Positive
    global_batch: Positive
    micro_batch: Positive
    lr: AboveZero

    def __post_init__(self) -> None:
        if self.alternating_steps > self.steps:
            raise ValueError(f"long_context.alternating_steps {self.alternating_steps} are more than its steps {self.steps}")
        if self.sequence_length % self.short_length:
            raise ValueError(f"long_context.short_length {self.short_length} does not divide its sequence_length {self.sequence_length}")


@params
class Schedule:
    """Warm-up to `lr`, stable, minus-sqrt decay to `min_lr` over the last `decay_steps` (0: constant). Rates are per step.

    A stage has besides them `processes` and `layout`: on other ranks the work goes on from the checkpoint that is there.
    """

    PLACEMENT: ClassVar = ("processes", "layout")

    steps: Positive
    optimizer: str
    muon_lr_scale: AboveZero
    lr: AboveZero
    min_lr: Share
    warmup_steps: Count
    decay_steps: Count
    weight_decay: Share
    clip: AboveZero
    mtp_depths: Count
    mtp_loss_scale: Share
    checkpoint_every: Positive

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps} is more than steps {self.steps}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
