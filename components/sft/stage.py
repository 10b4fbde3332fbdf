"""Supervised fine-tuning: packed conversations, loss on the assistant's tokens only (arXiv 2604.12374, section 3.1)."""

from __future__ import annotations

from pathlib import Path

from components.sft.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.contract.stages import Profile
from stagecraft.model.config import Architecture

__all__ = ["Params", "foresee", "main"]


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


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Fine-tune the base model on the demonstrations of the corpus and export the canonical checkpoint."""
    from stagecraft.checkpoint.canonical import read_checkpoint, write_checkpoint
    from stagecraft.engine.launch import ranks
    from stagecraft.engine.loop import tokens_per_second

    architecture, weights = read_checkpoint(inputs["base"])
    check_layout(params, architecture)
    command = ["components.sft.worker", str(log.work), str(inputs["corpus"]), str(inputs["base"])]
    with ranks(params.processes, command, log.work / "ranks"):
        from components.sft.train import train

        result = train(params, architecture, weights, inputs["corpus"], log.work, log)
    write_checkpoint(outputs["sft"], architecture, result.weights.items(), inputs["base"])
    curve = log.curve()
    return {
        "loss_first": curve[0]["loss"],
        "loss_last": log.tail_mean("loss", share=0.05),
        "conversations": result.conversations,
        "skipped_rows": result.skipped,
        "packing_efficiency": result.packing_efficiency,
        "tokens_per_second": tokens_per_second(log),  # of the assistant's, the ones with a loss
    }
