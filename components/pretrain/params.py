"""Parameters of the pretrain stage."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stagecraft.contract.params import params
from stagecraft.engine.optimizers import OPTIMIZERS
from stagecraft.model.config import Architecture
from stagecraft.model.precision import PRECISIONS

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0)]


@params
class Params:
    """Sizes in tokens or steps; learning rates per step. Defaults nowhere: the profile is complete."""

    seed: Count
    processes: Positive
    architecture: Architecture
    precision: str
    mtp_depths: Count
    mtp_loss_scale: Share
    sequence_length: Positive
    global_batch: Positive
    micro_batch: Positive
    steps: Positive
    optimizer: str
    muon_lr_scale: Annotated[float, Field(gt=0)]
    lr: Annotated[float, Field(gt=0)]
    min_lr: Share
    warmup_steps: Count
    decay_steps: Count
    weight_decay: Share
    clip: Annotated[float, Field(gt=0)]
    expert_bias_rate: Share
    aux_loss: Share
    checkpoint_every: Positive
    heldout_rows: Positive

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.optimizer!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        together = self.micro_batch * self.processes
        if self.global_batch % together:
            raise ValueError(f"global_batch {self.global_batch} is no multiple of micro_batch x processes = {together}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError(f"warmup_steps + decay_steps = {self.warmup_steps + self.decay_steps} is more than steps {self.steps}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
