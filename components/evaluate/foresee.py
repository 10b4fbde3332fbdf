"""What evaluation refuses, told before there are models."""

from __future__ import annotations

from pathlib import Path

from stagecraft.contract.cluster import Pod
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile


def foresee(profile: Profile, pod: Pod | None) -> None:
    """Refuse what this stage would refuse once there are five models.

    Raises:
        UserError: the folder with the benchmarks' data is not here.
    """
    data = profile["evaluate"].benchmarks.data
    if pod is None and data and not Path(data).is_dir():
        raise UserError("no such folder of benchmarks' data", where=f"evaluate.benchmarks.data: {data}", mend="name a folder, or \"\"")
