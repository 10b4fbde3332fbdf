"""Parameters of the pretrain stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from stagecraft.contract.params import params
from stagecraft.engine.layout import Layout
from stagecraft.engine.merge_params import Merging
from stagecraft.engine.phases import Phase, phases
from stagecraft.engine.schedule import Count, Positive, Schedule, Share
from stagecraft.model.config import Architecture
from stagecraft.model.precision import PRECISIONS

Blend = Literal["phase1", "phase2", "long"]


@params
class Params(Schedule):
    """Sizes in tokens or sequences. Defaults nowhere: the profile is complete."""

    PLACEMENT: ClassVar = (*Schedule.PLACEMENT, "keep_checkpoints", "hang_seconds")

    seed: Count
    processes: Positive
    layout: Layout
    architecture: Architecture
    precision: str
    emulate: bool
    diagnose_every: Count
    blend: Blend
    decay_blend: Blend
    sequence_length: Positive
    global_batch: Positive
    micro_batch: Positive
    expert_bias_rate: Share
    aux_loss: Share
    heldout_rows: Positive
    merge: Merging
    keep_checkpoints: Positive
    max_skipped_steps: Count
    hang_seconds: Count

    @property
    def phases(self) -> list[Phase]:
        """What is read when."""
        return phases(self.blend, self.decay_blend, steps=self.steps, decay_steps=self.decay_steps, global_batch=self.global_batch)

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        self.layout.check(self.architecture, self.sequence_length, self.optimizer)
        together = self.micro_batch * max(1, self.processes // self.layout.model)
        if self.global_batch % together:
            raise ValueError(f"global_batch {self.global_batch} is no multiple of micro_batch x data-parallel processes = {together}")
