"""The stages of a run in their order: each begins with the policy that the one before left."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from components.rl.generator import Job
from components.rl.params import Params
from components.rl.rlhf.serving import judging, keep_reward_model
from components.rl.train import train
from stagecraft.checkpoint.canonical import read_checkpoint, write_checkpoint
from stagecraft.contract.files import write_json
from stagecraft.contract.runlog import RunLog
from stagecraft.model.config import Architecture

STAGES = "stages"  # in the work directory: one for each of them
ROLLOUTS = "rollouts"  # in a stage's: what its generators drew


@dataclass(frozen=True)
class Trained:
    """What the stages came to.

    Attributes:
        weights: canonical tensors of the last policy, the MTP block as it came.
        judged: by stage, how often its reward model is right on held-out comparisons, where it has one.
    """

    weights: dict[str, Tensor]
    judged: dict[str, float]


def train_stages(params: Params, architecture: Architecture, weights: dict[str, Tensor], inputs: dict[str, Path], reward_model: Path,
                 log: RunLog) -> Trained:
    """Run every stage that a run which was killed had not finished.

    Args:
        weights: canonical tensors of the fine-tuned model; a reward model trained here starts from them in any stage.
        inputs: the artifacts `corpus` and `sft`.
        reward_model: where a copy of a reward model trained here goes.
    """
    judged, model, policy, before = {}, inputs["sft"], weights, 0
    parts = params.parts
    names = list(parts)
    for name, part in parts.items():
        work, last = log.work / STAGES / name, name == names[-1]
        work.mkdir(parents=True, exist_ok=True)
        answered = ((0,) if name == names[0] else ()) + ((part.steps,) if last else ()) if part.healing.steps else ()
        left, accuracy = work / "policy", work / "reward_model_accuracy.json"
        if left.exists():
            policy = read_checkpoint(left)[1]
        else:
            with judging(part, architecture, weights, inputs["corpus"], log) as judge:
                job = Job(part, inputs["corpus"], model, judge, work / ROLLOUTS, answered)
                policy = train(part, architecture, policy, job, work, before, log)
            if judge:
                write_json(accuracy, judge.accuracy)
            temporary = left.with_name(f".{left.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            write_checkpoint(temporary, architecture, policy.items(), inputs["sft"])
            temporary.rename(left)
            shutil.rmtree(work / "checkpoints")  # optimizer state, of use no more
        keep_reward_model(part, reward_model, log)
        if part.preferences.enabled:
            judged[name] = json.loads(accuracy.read_text())
        model, before = left, before + part.steps
    return Trained(policy, judged)
