"""Parameters of the pretrain stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from stagecraft.contract.params import params
from stagecraft.engine.layout import Layout
from stagecraft.engine.merge_params import Merging
from stagecraft.engine.phases import Phase, phases
from stagecraft.engine.schedule import Count, LongContext, Positive, Schedule, Share
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
    dtype: Literal["float32", "bfloat16"]
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
    long_context: LongContext
    keep_checkpoints: Positive
    max_skipped_steps: Count
    hang_seconds: Count

    @property
    def phases(self) -> list[Phase]:
        """What is read when."""
        return phases(self.blend, self.decay_blend, steps=self.steps, decay_steps=self.decay_steps, length=self.sequence_length,
                      batch=self.global_batch, micro=self.micro_batch, long=self.long_context)

    @property
    def tokens(self) -> int:
        """Read in all phases."""
        return sum(phase.rows * phase.length for phase in self.phases)

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        ranks = max(1, self.processes // self.layout.model)
        for phase in self.phases:
            self.layout.check(self.architecture, phase.length, self.optimizer)
            if phase.batch % (phase.micro * ranks):
                raise ValueError(f"global_batch {phase.batch} (of rows of {phase.length} tokens) is no multiple of "
                                 f"micro_batch x data-parallel processes = {phase.micro * ranks}")
