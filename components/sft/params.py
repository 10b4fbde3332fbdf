"""Parameters of the sft stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stagecraft.contract.params import params
from stagecraft.engine.optimizers import OPTIMIZERS

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]


@params
class Params:
    """Sizes in tokens or steps; learning rates per step."""

    seed: Count
    processes: Positive
    pack_tokens: Positive
    packs_per_step: Positive
    steps: Positive
    optimizer: str
    muon_lr_scale: Annotated[float, Field(gt=0)]
    lr: Annotated[float, Field(gt=0)]
    min_lr: Share
    warmup_steps: Count
    decay_steps: Count
    weight_decay: Share
    clip: Annotated[float, Field(gt=0)]
    mtp_depths: Count
    mtp_loss_scale: Share
    checkpoint_every: Positive

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        if self.packs_per_step % self.processes:
            raise ValueError(f"packs_per_step {self.packs_per_step} is no multiple of processes {self.processes}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps} is more than steps {self.steps}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
