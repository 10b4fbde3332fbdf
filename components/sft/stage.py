"""Supervised fine-tuning: packed conversations, loss on the assistant's tokens only (arXiv 2604.12374, section 3.1)."""

from __future__ import annotations

from pathlib import Path

from components.sft.foresee import check_model
from components.sft.params import Params
from stagecraft.contract.runlog import RunLog

__all__ = ["Params", "main"]


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Fine-tune the base model on the demonstrations of the corpus and export the canonical checkpoint."""
    from stagecraft.checkpoint.canonical import read_checkpoint, write_checkpoint
    from stagecraft.data.tokenizer import refuse_another
    from stagecraft.engine.launch import ranks
    from stagecraft.engine.loop import tokens_per_second

    architecture, weights = read_checkpoint(inputs["base"])
    check_model(params, architecture)
    refuse_another(inputs["corpus"], inputs["base"])
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
