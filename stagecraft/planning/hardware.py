"""Accelerators and efficiencies: the stated inputs of every prediction, from gpus.yaml and efficiencies.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from ruamel.yaml import YAML

from stagecraft.contract.bounded import NonNegative, Share
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params, parse

_HERE = Path(__file__).parent

Attained = Annotated[float, Field(gt=0, le=1)]  # of what a data sheet promises


@params
class Gpu:
    """One accelerator. Bytes; bytes per second (links: one direction); dense FLOP/s per format; dollars per hour."""

    name: str
    memory: float
    bandwidth: float
    peak: dict[str, float]
    nvlink: float
    domain: int
    network: float
    price: float

    def format(self, wanted: str) -> str:
        """The format this machine really computes in: the narrowest it has that is no narrower than `wanted`."""
        ladder = ("mxfp4", "nvfp4", "mxfp8", "fp8", "bfloat16", "tf32", "float32")
        return next(name for name in ladder[ladder.index(wanted):] if name in self.peak)


@dataclass(frozen=True)
class Cluster:
    """`count` GPUs of one kind."""

    gpu: Gpu
    count: int


@params
class Overlap:
    """Share of each kind of communication that hides behind computation."""

    tensor: Share
    expert: Share
    data: Share
    pipeline: Share
    context: Share


@params
class Efficiencies:
    """See efficiencies.yaml, which says what each is and why."""

    gemm: dict[str, Attained]
    attention: Attained
    scan: Attained
    sustained: Attained
    memory: Attained
    nvlink: Attained
    network: Attained
    overlap: Overlap
    memory_use: Attained
    serving_memory_use: Attained
    serving_step_seconds: NonNegative
    restart_seconds: NonNegative
    checkpoint_bandwidth: float = Field(gt=0)

    def ideal(self) -> Efficiencies:
        """Every share 1, communication hidden: the bound that no software passes."""
        return replace(self, gemm=dict.fromkeys(self.gemm, 1.0), attention=1.0, scan=1.0, sustained=1.0, memory=1.0, nvlink=1.0,
                       network=1.0, overlap=Overlap(tensor=1.0, expert=1.0, data=1.0, pipeline=1.0, context=1.0))


def _read(name: str) -> dict[str, Any]:
    return YAML(typ="safe").load((_HERE / name).read_text())


def efficiencies() -> Efficiencies:
    """The stated defaults."""
    return parse(Efficiencies, _read("efficiencies.yaml"), "efficiencies.yaml")


def gpu(name: str) -> Gpu:
    """The accelerator of that name, in any case of letters.

    Raises:
        UserError: there is none.
    """
    table = _read("gpus.yaml")
    if name.upper() not in table:
        raise UserError(f"unknown GPU {name!r}", where="--gpus", mend=f"known are {', '.join(table)}")
    return parse(Gpu, {"name": name.upper(), **table[name.upper()]}, f"gpus.yaml: {name}")


def cluster(text: str) -> Cluster:
    """Read `64xB200`, or `B200` for one.

    Raises:
        UserError: the text is neither, or names no known GPU.
    """
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([A-Za-z]+\d+)", text)
    if not match:
        raise UserError(f"{text!r} is not a number and a GPU", where="--gpus", mend="write it like 64xB200")
    return Cluster(gpu(match[2]), int(match[1] or 1))
