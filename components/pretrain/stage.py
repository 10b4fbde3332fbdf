"""Pre-training: tokens in, a base model out, in the recipe's precision (arXiv 2604.12374, section 2)."""

from __future__ import annotations

import json
import math
from pathlib import Path

from components.pretrain.foresee import refuse_vocabulary
from components.pretrain.params import Params
from stagecraft.contract.runlog import RunLog
from stagecraft.data.blend import read_blend
from stagecraft.data.indexed import read_indexed

__all__ = ["Params", "main"]


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Train from scratch on the corpus's blend and export the canonical checkpoint.

    Every rank runs `train`; this process is rank 0 and alone logs and exports.
    """
    from stagecraft.checkpoint.canonical import write_checkpoint
    from stagecraft.data.tokenizer import load_tokenizer
    from stagecraft.engine.launch import ranks
    from stagecraft.engine.loop import tokens_per_second

    tokenizer = inputs["corpus"] / "tokenizer"
    refuse_vocabulary(params, len(load_tokenizer(tokenizer)))
    with ranks(params.processes, ["components.pretrain.worker", str(log.work), str(inputs["corpus"])], log.work / "ranks"):
        from components.pretrain.train import train

        result = train(params, inputs["corpus"], log.work, log)
    write_checkpoint(outputs["base"], params.architecture, result.weights.items(), tokenizer)
    plot_loss(params, log)
    return {
        "loss_first": log.curve()[0]["loss"],
        "loss_last": log.tail_mean("loss", share=0.05, until=params.steps),
        **({"long_context_loss_last": log.tail_mean("loss", share=0.05, after=params.steps)} if params.long_context.steps else {}),
        "heldout_loss": result.heldout_loss,
        "heldout_bits_per_byte": result.heldout_loss / math.log(2) / bytes_per_token(inputs["corpus"]),
        "tokens": params.tokens,
        "tokens_per_second": tokens_per_second(log),
        "parameters": result.parameters,
    }


def bytes_per_token(corpus: Path) -> float:
    """UTF-8 bytes of held-out text per token, end-of-document tokens counted."""
    ((prefix, _),) = read_blend(corpus, "heldout")
    with (corpus / "heldout" / "text.jsonl").open() as stream:
        return sum(len(json.loads(line)["text"].encode()) for line in stream) / sum(map(len, read_indexed(prefix)))


def plot_loss(params: Params, log: RunLog) -> None:
    """Losses of the next token, of each MTP depth and of held-out rows, gradient norm and learning rate; phases begin at a line."""
    from matplotlib.figure import Figure

    curve, looks = log.curve(), log.curve("heldout")
    steps = [row["step"] for row in curve]
    figure = Figure(figsize=(7, 7), layout="constrained")
    loss, norm, rate = figure.subplots(3, 1, sharex=True, height_ratios=[4, 1, 1])
    depths = sum(key.startswith("mtp_loss_") for key in curve[0])
    for key, label in (("loss", "next token"), *((f"mtp_loss_{depth}", f"MTP depth {depth}") for depth in range(1, depths + 1))):
        loss.plot(steps, [row[key] for row in curve], label=label, linewidth=1)
    for key, label in (("loss", "held out"), ("merged", "held out, merged weights")):
        if points := [(row["step"], row[key]) for row in looks if key in row]:
            loss.plot(*zip(*points), label=label, linewidth=0, marker=".")
    norm.plot(steps, [row["grad_norm"] for row in curve], color="gray", linewidth=1)
    rate.plot(steps, [row["lr"] for row in curve], color="gray")
    for axes in (loss, norm, rate):
        for start in {phase.start for phase in params.phases} - {0}:
            axes.axvline(start, color="lightgray", linestyle="--", zorder=0)
    loss.set_ylabel("loss (nats per token)")
    loss.legend()
    norm.set_ylabel("gradient norm")
    norm.set_yscale("log")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    log.figure("loss", figure)
