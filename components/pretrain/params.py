"""Parameters of the pretrain stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from stagecraft.contract.bounded import Count, NonNegative, Positive, Seed
from stagecraft.contract.params import params
from stagecraft.engine.layout import Layout, divide
from stagecraft.engine.merge_params import Merging
from stagecraft.engine.phase_params import BatchRamp, LongContext
from stagecraft.engine.phases import Phase, phases
from stagecraft.engine.schedule import Schedule
from stagecraft.model.config import Architecture
from stagecraft.model.precision import PRECISIONS

Blend = Literal["phase1", "phase2", "long"]


@params
class Params(Schedule):
    """Sizes in tokens or sequences. No defaults: the profile must set every value."""

    # How closely the run is watched: nothing of this changes a bit of what is trained.
    PLACEMENT: ClassVar = (*Schedule.PLACEMENT, "diagnose_every", "heldout_every", "heldout_look_rows")

    seed: Seed
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
    batch_ramp: BatchRamp
    expert_bias_rate: NonNegative
    aux_loss: NonNegative
    heldout_every: Count
    heldout_look_rows: Positive
    heldout_rows: Positive
    merge: Merging
    long_context: LongContext

    @property
    def phases(self) -> list[Phase]:
        """What each part of the training reads."""
        return phases(self.blend, self.decay_blend, steps=self.steps, decay_steps=self.decay_steps, length=self.sequence_length,
                      batch=self.global_batch, micro=self.micro_batch, ramp=self.batch_ramp, long=self.long_context)

    def layout_of(self, phase: Phase) -> Layout:
        """How the ranks divide the model and the rows of a phase."""
        return self.long_context.layout if phase.start >= self.steps else self.layout

    @property
    def layouts(self) -> list[Layout]:
        """Those that the phases have, each once."""
        return list({self.layout_of(phase): None for phase in self.phases})

    def section_of(self, phase: Phase) -> str:
        """The section of the profile that says the layout and the rows of a phase."""
        return "pretrain.long_context" if phase.start >= self.steps else "pretrain"

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks that any phase, even the last, cannot be divided over.

        Raises:
            UserError: names what cannot be divided.
        """
        for phase in self.phases:
            section = self.section_of(phase)
            data = self.layout_of(phase).data(ranks, f"{section}.layout")
            for batch in sorted(phase.batches):
                divide(batch // phase.micro, data, f"{section}.global_batch / micro_batch")

    @property
    def tokens(self) -> int:
        """Read in all phases."""
        return sum(phase.rows * phase.length for phase in self.phases)

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        if bool(self.mtp_depths) != bool(self.architecture.num_nextn_predict_layers):
            raise ValueError(f"mtp_depths {self.mtp_depths} does not go with architecture.num_nextn_predict_layers "
                             f"{self.architecture.num_nextn_predict_layers}: set both above 0, or both to 0")
        self.batch_ramp.check(self.global_batch, self.steps - self.decay_steps)
        if self.long_context.steps:  # held-out text is read in rows of the usual length
            self.long_context.layout.check(self.architecture, self.sequence_length, self.optimizer, "long_context.layout")
        for phase in self.phases:
            layout, where = self.layout_of(phase), "long_context.layout" if phase.start >= self.steps else "layout"
            layout.check(self.architecture, phase.length, self.optimizer, where)
            ranks = max(1, self.processes // layout.model)
            for batch in sorted(phase.batches):
                if batch % (phase.micro * ranks):
                    raise ValueError(f"a batch of {batch} rows of {phase.length} tokens is no multiple of "
                                     f"micro_batch x data-parallel processes = {phase.micro * ranks}")
