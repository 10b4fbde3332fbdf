"""Parameters of the sft stage."""

from __future__ import annotations

from stagecraft.contract.params import params
from stagecraft.engine.layout import Layout
from stagecraft.engine.schedule import Count, Positive, Schedule


@params
class Params(Schedule):
    """Sizes in tokens or packs. Defaults nowhere: the profile is complete."""

    seed: Count
    processes: Positive
    layout: Layout
    pack_tokens: Positive
    packs_per_step: Positive

    def __post_init__(self) -> None:
        Schedule.__post_init__(self)
        data = max(1, self.processes // self.layout.model)
        if self.packs_per_step % data:
            raise ValueError(f"packs_per_step {self.packs_per_step} is no multiple of the {data} data-parallel processes")
