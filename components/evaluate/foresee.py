"""What evaluation refuses, told before there are models."""

from __future__ import annotations

import math
from pathlib import Path

from components.evaluate.params import MADE_PROMPTS, Params
from stagecraft.contract.cluster import Pod
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile


def foresee(profile: Profile, pod: Pod | None) -> None:
    """Refuse what this stage would refuse once there are five models.

    Raises:
        UserError: sequences longer than the model's; too few prompts for two of each task family, or for the limit `gate.family_max_loss`;
            or the folder with the benchmarks' data is not here.
    """
    params = profile["evaluate"]
    if "pretrain" in profile:
        profile["pretrain"].architecture.refuse_longer(params.max_model_len, "evaluate.max_model_len")
    if "curate" in profile:
        made, asked = profile["curate"].tasks, params.tasks
        needed = 2 * len(made.flawed)
        for where, prompts in (("evaluate.tasks.prompts", asked.prompts), ("curate.tasks.heldout_rows", made.heldout_rows)):
            if prompts < needed:
                raise UserError(f"{prompts} are less than two of each of {len(made.flawed)} task families, a standard error needs two",
                                where=where, mend=f"raise it to {needed} or more")
        _provable(params, min(asked.prompts, made.heldout_rows) // len(made.flawed), "family", "evaluate.tasks.prompts")
    if params.benchmarks.tasks:
        _provable(params, params.benchmarks.prompts or MADE_PROMPTS, "benchmark", "evaluate.benchmarks.prompts")
    data = params.benchmarks.data
    if pod is None and data and not Path(data).is_dir():
        raise UserError("no such folder of benchmarks' data", where=f"evaluate.benchmarks.data: {data}", mend="name a folder, or \"\"")


def _provable(params: Params, prompts: int, of: str, where: str) -> None:
    rules = params.gate
    if (loss := unprovable_loss(prompts, rules.family_confidence)) > rules.family_max_loss:
        raise UserError(f"{prompts} prompts of a {of} cannot show that no more than {rules.family_max_loss:g} is lost to the champion: "
                        f"equal answers leave {loss:.3f} possible", where="evaluate.gate.family_max_loss",
                        mend=f"raise it to {math.ceil(100 * loss) / 100:g} or more, or raise {where}")


def unprovable_loss(prompts: int, confidence: float) -> float:
    """What a family may have lost, by the bound of `Paired.lower_bound`, where two models answer each of so many prompts alike."""
    from scipy.special import stdtrit  # `scipy.stats`, which that takes, is half a second of every run

    return float(stdtrit(prompts + 1, confidence)) * math.sqrt(2 / (prompts + 1) / (prompts + 2))
