"""How a training step is spread over GPUs: the sizes of the parallel groups, and what makes them impossible."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from stagecraft.contract.division import refusals
from stagecraft.contract.errors import UserError
from stagecraft.planning.architecture import Model

RECOMPUTE = ("none", "moe", "full")


@dataclass(frozen=True)
class Workload:
    """One step of an optimizer: sequences of `length` tokens, `batch` of them over all GPUs; prediction depths of MTP."""

    length: int
    batch: int
    mtp_depths: int = 0
    optimizer: str = "adamw"

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.length * self.batch


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel groups, in Megatron's order of ranks: tensor, context, data, pipeline; expert over the first three.

    Attributes:
        tp, cp, pp, ep, dp: tensor (with sequence parallelism), context, pipeline, expert and data parallel sizes.
        micro: sequences of one microbatch.
        recompute: whose activations the backward pass computes again: "none", "moe" for those of MoE layers, "full" for all.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1
    micro: int = 1
    recompute: str = "none"

    def __str__(self) -> str:
        return (f"TP{self.tp} CP{self.cp} PP{self.pp} EP{self.ep} DP{self.dp}, micro-batch {self.micro}, "
                f"recompute {self.recompute}")

    @property
    def gpus(self) -> int:
        """GPUs used."""
        return self.tp * self.cp * self.pp * self.dp

    @property
    def expert_dp(self) -> int:
        """Ranks that hold the same experts."""
        return self.tp * self.cp * self.dp // self.ep

    def microbatches(self, work: Workload) -> int:
        """Forward passes of one rank in a step."""
        return work.batch // (self.dp * self.micro)


def problems(layout: Layout, model: Model, work: Workload, gpus: int) -> Iterator[str]:
    """Why the layout cannot be, one sentence each; nothing if it can.

    A model of our engine's family is divided by the engine's rules; of others, only the GPUs and the batch are looked at.
    """
    if gpus % (layout.tp * layout.cp * layout.pp):
        yield f"tp x cp x pp = {layout.tp * layout.cp * layout.pp} does not divide the {gpus} GPUs"
    elif layout.gpus != gpus:
        yield f"tp x cp x pp x dp = {layout.gpus} is not the {gpus} GPUs there are"
    ranks = layout.tp * layout.cp * layout.dp
    if ranks % layout.ep:
        yield f"ep {layout.ep} does not divide the {ranks} ranks of a pipeline stage"
    if model.parts:
        yield from refusals(model.parts, work.length, work.optimizer, tensor=layout.tp, pipeline=layout.pp, context=layout.cp,
                            expert=layout.ep)
    if work.batch % (layout.dp * layout.micro):
        yield f"dp {layout.dp} x micro-batch {layout.micro} does not divide the global batch of {work.batch}"


def parse_layout(text: str, gpus: int) -> Layout:
    """Read `tp=2,pp=1,ep=64`; what is not named is 1, dp the rest of the GPUs, recompute none.

    Raises:
        UserError: a name or a value is none of a layout's.
    """
    names = [field.name for field in fields(Layout)]
    given: dict[str, int | str] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        good = value in RECOMPUTE if name == "recompute" else re.fullmatch(r"[1-9]\d*", value)
        if name not in names or not good:
            raise UserError(f"{part.strip()!r} is no part of a layout", where="--layout",
                            mend=f"write it like tp=2,ep=64,recompute=moe; names are {', '.join(names)}")
        given[name] = value if name == "recompute" else int(value)
    if "dp" not in given:
        model_parallel = int(given.get("tp", 1)) * int(given.get("cp", 1)) * int(given.get("pp", 1))
        given["dp"] = max(gpus // model_parallel, 1)
    return Layout(**given)
