"""What fine-tuning refuses, told before there is a base model."""

from __future__ import annotations

from pathlib import Path

from components.sft.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.stages import Profile
from stagecraft.model.config import Architecture


def foresee(profile: Profile, local: bool) -> None:
    """Refuse what this stage would refuse once there is a base model.

    Raises:
        UserError: a layout cannot divide the model, or a file of conversations is not here.
    """
    params = profile["sft"]
    if "pretrain" in profile:
        check_layout(params, profile["pretrain"].architecture)
    for name in params.data.files if local else ():
        if not Path(name).is_file():
            raise UserError("no such file of conversations", where=f"sft.data.files: {name}", mend="name a JSONL file, or none")


def check_layout(params: Params, architecture: Architecture) -> None:
    """Refuse a layout that cannot divide the model or the packs.

    Raises:
        UserError: the first mistake found.
    """
    try:
        for stage in params.stages:
            params.layout.check(architecture, stage.pack_tokens, params.optimizer)
    except ValueError as error:
        raise UserError(str(error), where="sft", mend="choose another layout") from None
