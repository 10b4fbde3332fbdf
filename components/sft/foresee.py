"""What fine-tuning refuses, told before there is a base model."""

from __future__ import annotations

from pathlib import Path

from components.sft.memory import trainings
from components.sft.params import Params
from stagecraft.contract.cluster import Pod
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile
from stagecraft.model.config import Architecture
from stagecraft.planning.fit import refuse_too_large


def foresee(profile: Profile, pod: Pod | None) -> None:
    """Refuse what this stage would refuse once there is a base model.

    Raises:
        UserError: the ranks or the model cannot be divided so, a file of conversations is not here, or a cluster's GPUs are too small.
    """
    params: Params = profile["sft"]
    ranks = pod.ranks(params.processes) if pod else params.processes
    if ranks:
        params.check_ranks(ranks)
    if "pretrain" in profile:
        architecture = profile["pretrain"].architecture
        check_model(params, architecture)
        if pod and ranks:
            refuse_too_large(trainings(params, architecture, ranks), pod)
    for name in () if pod else params.data.files:
        if not Path(name).is_file():
            raise UserError("no such file of conversations", where=f"sft.data.files: {name}", mend="name a JSONL file, or none")


def check_model(params: Params, architecture: Architecture) -> None:
    """Refuse what cannot be done with the model.

    Raises:
        UserError: it has no MTP block to train, or a layout cannot divide it or the packs.
    """
    if params.mtp_depths and not architecture.num_nextn_predict_layers:
        raise UserError("the model has no MTP block to train", where="sft.mtp_depths", mend="set it to 0")
    try:
        for stage in params.stages:
            params.layout.check(architecture, stage.pack_tokens, params.optimizer)
    except ValueError as error:
        raise UserError(str(error), where="sft", mend="choose another layout") from None
