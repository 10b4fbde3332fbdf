"""The examination: which checks a node undergoes, in which order."""

from __future__ import annotations

from pathlib import Path

from stagecraft.doctor import gpu
from stagecraft.doctor.gpu import gpu_checks
from stagecraft.doctor.machine import machine_checks
from stagecraft.doctor.network import network_checks
from stagecraft.doctor.node import LAPTOP, Node, kind_of, load
from stagecraft.doctor.speed import speed_checks
from stagecraft.doctor.verdict import Check, attempt

AUTO = "auto"


def choose(profile: str) -> tuple[str, Node]:
    """The profile of that name; `auto` goes by the GPUs of this machine.

    Raises:
        UserError: there is no such profile.
    """
    name = kind_of(gpu.names()) if profile == AUTO else profile
    return name, load(name)


def examine(name: str, node: Node, work: Path, *, quick: bool = False) -> list[Check]:
    """Examine this machine against a profile.

    Args:
        work: the directory the work will lie in.
        quick: leave out what is measured.
    """
    checks = [*machine_checks(node, work), *network_checks(node), *gpu_checks(node)]
    if name == LAPTOP and (strangers := gpu.names()):
        checks.append(Check("gpu.profile", "warn", f"no profile for {', '.join(sorted(strangers))}", "",
                            "its health is checked, its speed has no floor: add a file to stagecraft/doctor/nodes"))
    return checks if quick else [*checks, *attempt("speed", lambda: speed_checks(node, work))]
