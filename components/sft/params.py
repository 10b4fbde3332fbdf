"""Parameters of the sft stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stagecraft.contract.params import params
from stagecraft.engine.layout import Layout
from stagecraft.engine.schedule import Count, Positive, Schedule

Share = Annotated[float, Field(ge=0, le=1)]


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
        if self.off + self.low + self.cut > 1:
            raise ValueError(f"off + low + cut is {self.off + self.low + self.cut:g}, more than 1")


@params
class Params(Schedule):
    """Sizes in tokens or packs. Defaults nowhere: the profile is complete."""

    seed: Count
    data: Data
    modes: Modes
    processes: Positive
    layout: Layout
    pack_tokens: Positive
    packs_per_step: Positive
    conversation_mean_steps: Count

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        if self.conversation_mean_steps > self.steps:
            raise ValueError(f"conversation_mean_steps {self.conversation_mean_steps} is more than the {self.steps} steps there are")
        if self.layout.context > 1:
            raise ValueError("layout.context must be 1: the boundaries of packed conversations would be lost between its ranks")
        data = max(1, self.processes // self.layout.model)
        if self.packs_per_step % data:
            raise ValueError(f"packs_per_step {self.packs_per_step} is no multiple of the {data} data-parallel processes")
