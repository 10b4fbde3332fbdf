"""Reinforcement learning with verifiable rewards: GRPO, rollouts by vLLM in this process or beside it (arXiv 2604.12374, section 3.2)."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from components.rl.foresee import check_model, check_rows, check_sandbox
from components.rl.params import Params, Stage
from stagecraft.contract.runlog import RunLog

__all__ = ["Params", "main"]


def main(params: Params, inputs: dict[str, Path], outputs: dict[str, Path], log: RunLog) -> dict[str, float]:
    """Improve the fine-tuned model by what is rewarded, heal its MTP block, export the canonical checkpoint and a sample of rollouts."""
    from components.rl.lead import KEPT
    from components.rl.rlhf.reward_model import REWARD_MODEL
    from components.rl.sequence import STAGES
    from stagecraft.checkpoint.canonical import read_architecture, write_checkpoint
    from stagecraft.data.tokenizer import refuse_another
    from stagecraft.engine.launch import is_launched, ranks, world_size

    parts = params.parts
    for part in parts.values():
        if part.preferences.enabled and part.preferences.url:
            part.preferences.key("rl.preferences")  # which a later stage would miss after hours
    check_rows(params)
    architecture = read_architecture(inputs["sft"])
    refuse_another(inputs["corpus"], inputs["sft"])
    check_model(params, architecture, world_size() if is_launched() else params.processes)
    check_sandbox(params)
    command = ["components.rl.worker", str(log.work), str(inputs["corpus"]), str(inputs["sft"])]
    with ranks(params.processes, command, log.work / "ranks"):
        from components.rl.run import improve

        found = improve(params, inputs["corpus"], inputs["sft"], log.work, log)
    write_checkpoint(outputs["aligned"], architecture, found.weights.items(), inputs["sft"])
    if (log.work / REWARD_MODEL).exists():
        shutil.copytree(log.work / REWARD_MODEL, outputs["aligned"] / REWARD_MODEL)
    judged, worth = found.judged, found.worth
    for name in KEPT:
        lines = "".join((log.work / STAGES / part / name).read_text() for part in parts)
        (outputs["aligned"] / name).write_text(lines)
        log.table(name.removesuffix(".jsonl"), [json.loads(line) for line in lines.splitlines()])
    curve = log.curve()
    plot_reward(log, parts)
    return {
        **_ends(curve, "reward"),
        **mismatches(curve),
        "completions": sum(part.steps * part.prompts_per_step * part.generations_per_prompt for part in parts.values()),
        "generated_tokens_per_second": sum(row["tokens"] for row in curve) / sum(row["seconds_generate"] for row in curve),
        "staleness": sum(row["staleness"] for row in curve) / len(curve),
        "share_wait": _share(curve, "wait"), "share_update": _share(curve, "update"), "share_handover": _share(curve, "handover"),
        **(_stages(curve, parts) if len(parts) > 1 else {}),
        **({"reward_model_accuracy": sum(judged.values()) / len(judged),
            **_ends([row for row in curve if "verified" in row], "verified")} if judged else {}),
        **{f"accepted_length_{when}": each.length for when, each in worth.items()},
        **{f"foreseen_{depth}_{when}": share for when, each in worth.items() for depth, share in enumerate(each.agreement, 1)},
    }


def _ends(rows: list[dict[str, float]], key: str) -> dict[str, float]:
    """The first value of some steps, and the mean of the last tenth: an end less noisy than the last step."""
    tail = rows[-max(1, len(rows) // 10):]
    return {f"{key}_first": rows[0][key], f"{key}_last": sum(row[key] for row in tail) / len(tail)}


def mismatches(curve: list[dict[str, float]]) -> dict[str, float]:
    """Mean and maximum over the steps that learnt something; nothing if none did."""
    found = [row["mismatch"] for row in curve if "mismatch" in row]
    return {"mismatch_mean": sum(found) / len(found), "mismatch_max": max(found)} if found else {}


def _stages(curve: list[dict[str, float]], parts: dict[str, Stage]) -> dict[str, float]:
    """First and last reward of every stage."""
    found, before = {}, 0
    for name, part in parts.items():
        rows = [row for row in curve if before < row["step"] <= before + part.steps]
        found |= {f"{name}_{key}": value for key, value in _ends(rows, "reward").items()}
        before += part.steps
    return found


def _share(curve: list[dict[str, float]], part: str) -> float:
    parts = {name: sum(row[f"seconds_{name}"] for row in curve) for name in ("wait", "update", "handover")}
    return parts[part] / sum(parts.values())


def plot_reward(log: RunLog, parts: dict[str, Stage]) -> None:
    """Mean reward of every step, all families and each; a line where a further stage begins, whose rewards may be others."""
    from matplotlib.figure import Figure

    curve = log.curve()
    steps = [row["step"] for row in curve]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key in sorted({key for row in curve for key in row if key.startswith("reward_")}):
        rewards = [row.get(key, math.nan) for row in curve]  # a step may draw no prompt of a family
        axes.plot(steps, rewards, linewidth=0.8, alpha=0.7, label=key.removeprefix("reward_"))
    axes.plot(steps, [row["reward"] for row in curve], color="black", label="all families")
    before = 0
    for name, part in list(parts.items()) if len(parts) > 1 else ():
        axes.axvline(before + 0.5, color="grey", linewidth=0.8)
        axes.text(before + 0.5, 1.0, f" {name}", transform=axes.get_xaxis_transform(), va="bottom", fontsize=8)
        before += part.steps
    axes.set_xlabel("step")
    axes.set_ylabel("mean reward of the completions drawn")
    axes.legend(ncols=2, fontsize=8)
    log.figure("reward", figure)
