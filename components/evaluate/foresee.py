"""What evaluation refuses, told before there are models."""

from __future__ import annotations

from pathlib import Path

from stagecraft.contract.cluster import Pod
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile


def foresee(profile: Profile, pod: Pod | None) -> None:
    """Refuse what this stage would refuse once there are five models.

    Raises:
        UserError: too few prompts for two of each task family, or the folder with the benchmarks' data is not here.
    """
    if "curate" in profile:
        made, asked = profile["curate"].tasks, profile["evaluate"].tasks
        needed = 2 * len(made.flawed)
        for where, prompts in (("evaluate.tasks.prompts", asked.prompts), ("curate.tasks.heldout_rows", made.heldout_rows)):
            if prompts < needed:
                raise UserError(f"{prompts} are less than two of each of {len(made.flawed)} task families, a standard error needs two",
                                where=where, mend=f"raise it to {needed} or more")
    data = profile["evaluate"].benchmarks.data
    if pod is None and data and not Path(data).is_dir():
        raise UserError("no such folder of benchmarks' data", where=f"evaluate.benchmarks.data: {data}", mend="name a folder, or \"\"")
