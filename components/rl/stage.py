"""Reinforcement learning with verifiable rewards: GRPO, rollouts by vLLM in this process or beside it (arXiv 2604.12374, section 3.2)."""

from __future__ import annotations

import json
import math
from pathlib import Path

from components.rl.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog

__all__ = ["Params", "main"]


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Improve the fine-tuned model by what is rewarded, heal its MTP block, export the canonical checkpoint and a sample of rollouts."""
    from components.rl.healing import heal
    from components.rl.rlhf.serving import judging
    from components.rl.train import ROLLOUTS, train
    from stagecraft.checkpoint.canonical import read_checkpoint, write_checkpoint

    architecture, weights = read_checkpoint(inputs["sft"])
    if params.healing.steps and not architecture.num_nextn_predict_layers:
        raise UserError("the model has no MTP block to heal", where="rl.healing.steps", mend="set it to 0")
    with judging(params, architecture, weights, inputs["corpus"], outputs["aligned"] / "reward_model", log) as judge:
        trained = train(params, architecture, weights, inputs["corpus"], inputs["sft"], judge, log)
    worth = {}
    if params.healing.steps:
        trained, worth = heal(params, architecture, weights, trained, log)
    write_checkpoint(outputs["aligned"], architecture, trained.items(), inputs["sft"])
    for name in ROLLOUTS:
        (outputs["aligned"] / name).write_bytes((log.work / name).read_bytes())
        log.table(name.removesuffix(".jsonl"), [json.loads(line) for line in (log.work / name).read_text().splitlines()])
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
        **({"reward_model_accuracy": judge.accuracy, "verified_first": curve[0]["verified"],
            "verified_last": log.tail_mean("verified", share=0.1)} if judge else {}),
        **{f"accepted_length_{when}": each.length for when, each in worth.items()},
        **{f"foreseen_{depth}_{when}": share for when, each in worth.items() for depth, share in enumerate(each.agreement, 1)},
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
