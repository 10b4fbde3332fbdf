"""What is expected of a node, per GPU generation, as data: nodes/*.yaml, each line with its reason and source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from packaging.version import InvalidVersion, Version

from stagecraft.contract.errors import UserError
from stagecraft.contract.params import params, parse, read_profile
from stagecraft.doctor.verdict import Check

DIRECTORY = Path(__file__).parent / "nodes"
LAPTOP = "laptop"

# What a bound may speak of, and its unit.
UNITS = {
    "cores": "cores", "memory": "GB", "disk_free": "GB", "shared_memory": "GB", "open_files": "files", "locked_memory": "GB",
    "gpus": "GPUs", "sm_clock": "MHz", "temperature": "°C", "nvlinks": "links per GPU", "nvlink_rate": "GB/s per link",
    "ports": "active ports", "port_rate": "Gb/s per port",
    "gemm_fp32": "TFLOP/s", "gemm_bf16": "TFLOP/s", "gemm_fp8": "TFLOP/s", "memory_rate": "GB/s", "all_reduce": "GB/s",
    "disk_write": "MB/s", "disk_read": "MB/s",
}


@params
class Bound:
    """A figure that a node should reach, or stay below.

    Args:
        otherwise: the verdict on a node that does not.
        reason: why this figure.
        source: where it comes from.
    """

    least: float | None = None
    most: float | None = None
    otherwise: Literal["warn", "fail"]
    reason: str
    source: str

    def __post_init__(self) -> None:
        if (self.least is None) == (self.most is None):
            raise ValueError("a bound has either `least` or `most`")

    def holds(self, value: float) -> bool:
        return value >= self.least if self.least is not None else value <= self.most


@params
class Oldest:
    """The oldest version that will do."""

    least: str
    reason: str
    source: str

    def __post_init__(self) -> None:
        if as_version(self.least) is None:
            raise ValueError("not a version")


@params
class Setting:
    """One environment variable."""

    name: str
    value: str
    reason: str
    source: str


@params
class Choice:
    """A kernel, format or transport that suits the generation."""

    of: str
    choose: str
    reason: str
    source: str


@params
class Node:
    """What a kind of node has.

    Args:
        title: the kind in words.
        gpu_names: as `nvidia-smi` prints them; empty for a node without GPUs.
        fabric: whether its GPUs register with NVSwitches (`nvidia-smi -q`, section Fabric).
        imex: whether NVLink reaches other nodes, which needs an IMEX channel.
        bounds: figures by their name in `UNITS`.
        versions: of `driver`, `cuda` and `nccl`.
    """

    title: str
    gpu_names: list[str]
    fabric: bool
    imex: bool
    bounds: dict[str, Bound]
    versions: dict[str, Oldest]
    environment: list[Setting]
    choices: list[Choice]

    def __post_init__(self) -> None:
        for name in self.bounds:
            if name not in UNITS:
                raise ValueError(f"no check measures {name!r}")
        if unknown := set(self.versions) - {"driver", "cuda", "nccl"}:
            raise ValueError(f"no check reads the version of {sorted(unknown)}")

    def judge(self, check: str, name: str, value: float, mend: str, found: str = "") -> Check:
        """Hold a figure against its bound; without one the figure is only reported.

        Args:
            check: name of the check.
            name: of the bound.
            found: how to show the value (default: the number and its unit).
        """
        unit, bound = UNITS[name], self.bounds.get(name)
        found = found or f"{value:.4g} {unit}"
        if bound is None:
            return Check(check, "ok", found)
        expected = f"at least {bound.least:g} {unit}" if bound.least is not None else f"at most {bound.most:g} {unit}"
        if bound.holds(value):
            return Check(check, "ok", found, expected)
        return Check(check, bound.otherwise, found, expected, f"{mend} ({bound.reason})")

    def judge_version(self, check: str, name: str, found: str, mend: str) -> Check:
        """Hold a version against the oldest that will do."""
        oldest, version = self.versions.get(name), as_version(found)
        expected = f"{oldest.least} or later" if oldest else ""
        if version is None:
            return Check(check, "warn", f"not a version: {found!r}", expected, mend)
        if oldest and version < Version(oldest.least):
            return Check(check, "fail", found, expected, f"{mend} ({oldest.reason})")
        return Check(check, "ok", found, expected)


def as_version(text: str) -> Version | None:
    """None for what is no version."""
    try:
        return Version(text)
    except InvalidVersion:
        return None


def names() -> list[str]:
    """The kinds of node there are data for."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def load(name: str) -> Node:
    """Read one kind of node.

    Raises:
        UserError: there is no such kind, or its file is wrong.
    """
    path = DIRECTORY / f"{name}.yaml"
    if name not in names():
        raise UserError(f"no such kind of node: {name}", where="--profile", mend=f"choose auto, {', '.join(names())}")
    return parse(Node, read_profile(path), str(path.name))


def share(node: Node, gpus: int) -> Node:
    """The part of a node that goes with some of its GPUs: cores, memory, disk and ports in proportion. A single GPU talks to no other.

    Raises:
        UserError: the node has fewer.
    """
    whole = int(node.bounds["gpus"].least) if "gpus" in node.bounds else 0
    if not 1 <= gpus <= whole:
        raise UserError(f"cannot expect {gpus} GPUs of {node.title}", where="--gpus",
                        mend=f"give 1 to {whole}" if whole else "it has none; name a kind of node with --profile")
    part = {"gpus", "cores", "memory", "disk_free", "ports"}
    bounds = {name: replace(bound, least=bound.least * gpus / whole) if name in part else bound for name, bound in node.bounds.items()}
    if gpus > 1:
        return replace(node, bounds=bounds)
    return replace(node, fabric=False, imex=False, bounds={name: bound for name, bound in bounds.items() if name not in _BETWEEN_GPUS})


_BETWEEN_GPUS = {"nvlinks", "nvlink_rate", "ports", "port_rate", "locked_memory", "all_reduce"}


def kind_of(gpu_names: set[str]) -> str:
    """The kind of node that has these GPUs: the laptop's where no file names them."""
    for name in names():
        if gpu_names & set(load(name).gpu_names):
            return name
    return LAPTOP
