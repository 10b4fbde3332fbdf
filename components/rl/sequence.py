"""The stages of a run in their order: each begins with the policy that the one before left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from torch import Tensor

from components.rl.generator import Job
from components.rl.params import Params
from components.rl.rlhf.serving import judging
from components.rl.train import train
from stagecraft.checkpoint.canonical import read_checkpoint, write_checkpoint
from stagecraft.contract.files import whole_directory, write_json
from stagecraft.contract.runlog import RunLog
from stagecraft.engine.collectives import FirstRank
from stagecraft.model.config import Architecture

STAGES = "stages"  # in the work directory: one for each of them
ROLLOUTS = "rollouts"  # in a stage's: what its generators drew


def train_stages(params: Params, architecture: Architecture, weights: dict[str, Tensor], corpus: Path, tuned: Path, work: Path,
                 first: FirstRank, log: RunLog | None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Run every stage that a run which was killed had not finished; every rank runs it.

    Args:
        weights: canonical tensors of the fine-tuned model; a reward model trained here starts from them in any stage.
        corpus, tuned: artifacts; the latter is the fine-tuned model.
        work: the run's directory.
        log: on rank 0 only.
    """
    judged, model, policy, before = {}, tuned, weights, 0
    parts = params.parts
    names = list(parts)
    for name, part in parts.items():
        own, last = work / STAGES / name, name == names[-1]
        own.mkdir(parents=True, exist_ok=True)
        answered = ((0,) if name == names[0] else ()) + ((part.steps,) if last else ()) if part.healing.steps else ()
        left, accuracy = own / "policy", own / "reward_model_accuracy.json"
        if not first.broadcast(left.exists()):
            with judging(part, architecture, weights, corpus, work, first, log) as judge:
                first.broadcast()  # that it is up: NCCL's patience may be shorter than that takes
                job = Job(part, corpus, model, judge, own / ROLLOUTS, answered)
                policy = train(part, architecture, policy, job, own, before, first, log)
            if judge:
                write_json(accuracy, judge.accuracy)
            if first.here:
                with whole_directory(left) as directory:
                    write_checkpoint(directory, architecture, policy.items(), tuned)
                shutil.rmtree(own / "checkpoints")  # optimizer state, of use no more
            first.broadcast()  # that it is there
        policy = read_checkpoint(left)[1]
        if part.preferences.enabled and first.here:
            judged[name] = json.loads(accuracy.read_text())
        model, before = left, before + part.steps
    return policy, judged
