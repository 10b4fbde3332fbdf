"""Reinforcement learning with verifiable rewards: GRPO, rollouts by vLLM in this process or beside it (arXiv 2604.12374, section 3.2)."""

from __future__ import annotations

import math
from pathlib import Path

from components.rl.params import Params
from stagecraft.contract.runlog import RunLog

__all__ = ["Params", "main"]


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Improve the fine-tuned model on the corpus's RL prompts and export the canonical checkpoint with a sample of rollouts."""
    from components.rl.train import train
    from stagecraft.checkpoint.canonical import read_checkpoint, write_checkpoint

    architecture, weights = read_checkpoint(inputs["sft"])
    trained = train(params, architecture, weights, inputs["corpus"], inputs["sft"], log)
    write_checkpoint(outputs["aligned"], architecture, trained.items(), inputs["sft"])
    (outputs["aligned"] / "rollouts.jsonl").write_bytes((log.work / "rollouts.jsonl").read_bytes())
    curve = log.curve()
    plot_reward(log)
    return {
        "reward_first": curve[0]["reward"],
        "reward_last": log.tail_mean("reward", share=0.1),
        "mismatch_mean": sum(row["mismatch"] for row in curve) / len(curve),
        "mismatch_max": max(row["mismatch"] for row in curve),
        "completions": params.steps * params.prompts_per_step * params.generations_per_prompt,
        "generated_tokens_per_second": sum(row["tokens"] for row in curve) / sum(row["seconds_generate"] for row in curve),
        "staleness": sum(row["staleness"] for row in curve) / len(curve),
        "share_wait": _share(curve, "wait"), "share_update": _share(curve, "update"), "share_handover": _share(curve, "handover"),
    }


def _share(curve: list[dict[str, float]], part: str) -> float:
    parts = {name: sum(row[f"seconds_{name}"] for row in curve) for name in ("wait", "update", "handover")}
    return parts[part] / sum(parts.values())


def plot_reward(log: RunLog) -> None:
    """Mean reward of every step, all families and each."""
    from matplotlib.figure import Figure

    curve = log.curve()
    steps = [row["step"] for row in curve]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key in sorted({key for row in curve for key in row if key.startswith("reward_")}):
        rewards = [row.get(key, math.nan) for row in curve]  # a step may draw no prompt of a family
        axes.plot(steps, rewards, linewidth=0.8, alpha=0.7, label=key.removeprefix("reward_"))
    axes.plot(steps, [row["reward"] for row in curve], color="black", label="all families")
    axes.set_xlabel("step")
    axes.set_ylabel("mean reward of the completions drawn")
    axes.legend(ncols=2, fontsize=8)
    log.figure("reward", figure)
