"""Parameters of the sft stage."""

from __future__ import annotations

from typing import Literal

from stagecraft.contract.bounded import Positive, Seed, Share
from stagecraft.contract.params import params
from stagecraft.engine.layout import Layout, divide
from stagecraft.engine.schedule import Schedule


@params
class Data:
    """Conversations beside or instead of the corpus's tasks: JSONL files in the OpenAI messages format."""

    tasks: bool
    files: list[str]
    bad_rows: Literal["fail", "skip"]


@params
class Modes:
    """Shares of the conversations without thinking, with little of it, and with thinking cut at a random word; the rest is as it is."""

    off: Share
    low: Share
    cut: Share

    def __post_init__(self) -> None:
        if (whole := self.off + self.low + self.cut) > 1 + 1e-9:  # 0.33 + 0.56 + 0.11 is 1 and a bit
            raise ValueError(f"off + low + cut is {whole:g}, more than 1")


@params
class Stage:
    """A part of the run: whose mean the loss is, how conversations are packed, and in which shares they think."""

    steps: Positive
    loss_mean: Literal["tokens", "conversations"]
    pack_tokens: Positive
    packs_per_step: Positive
    modes: Modes


@params
class Params(Schedule):
    """Sizes in tokens or packs. No defaults: the profile must set every value. `later_stages` are the last steps, in their order."""

    seed: Seed
    data: Data
    modes: Modes
    processes: Positive
    layout: Layout
    dtype: Literal["float32", "bfloat16"]
    pack_tokens: Positive
    packs_per_step: Positive
    later_stages: list[Stage]

    @property
    def stages(self) -> list[Stage]:
        """All of them; the first is what the parameters themselves say, with the mean over tokens."""
        first = Stage(steps=self.steps - sum(stage.steps for stage in self.later_stages), loss_mean="tokens", pack_tokens=self.pack_tokens,
                      packs_per_step=self.packs_per_step, modes=self.modes)
        return [first, *self.later_stages]

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks over which the model or any stage's packs cannot be divided.

        Raises:
            UserError: names what cannot be divided.
        """
        data = self.layout.data(ranks, "sft.layout")
        for stage in self.stages:
            divide(stage.packs_per_step, data, "sft: packs_per_step")

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if (later := sum(stage.steps for stage in self.later_stages)) >= self.steps:
            raise ValueError(f"later_stages have {later} of the {self.steps} steps, and leave none to the first")
        data = max(1, self.processes // self.layout.model)
        for stage in self.stages:
            if stage.packs_per_step % data:
                raise ValueError(f"packs_per_step {stage.packs_per_step} is no multiple of the {data} data-parallel processes")
