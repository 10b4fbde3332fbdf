"""MTP healing: the policy has moved away under its MTP block, which learns the policy's own answers; all else stays as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from components.rl.acceptance import Acceptance, Answer, acceptance
from components.rl.params import Stage
from components.rl.rollouts import Sample, draw_path, read_draw
from components.rl.supervised import train_on
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import parallel
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.engine.watchdog import group_timeout
from stagecraft.model.config import Architecture

FROZEN = ("embedding.", "decoder.", "output_layer.")  # Megatron's names of all that is not the MTP block


def heal(params: Stage, architecture: Architecture, before: Mapping[str, Tensor], weights: Mapping[str, Tensor], started: Path, kept: Path,
         work: Path, log: RunLog | None) -> tuple[dict[str, Tensor], dict[str, Acceptance]]:
    """Train the MTP block on what the policy said in the last steps; every rank does its part; resumable at
    every checkpoint.

    Args:
        params: of the last stage.
        before, weights: canonical tensors of the fine-tuned model and of the policy, the latter with the MTP block of the former.
        started, kept: where the first and the last stage kept what they drew.
        work: the run's directory.
        log: on rank 0 only.

    Returns:
        on rank 0 the policy's tensors with the healed block; what the drafts were worth `before` reinforcement learning, after it
        (`rl`) and `healed`, each for greedy answers of the same model to held-out prompts.
    """
    asked = params.healing
    parallel.initialize(params.seed, params.layout, group_timeout(params.hang_seconds))
    trainer = Trainer(architecture, Optimization(lr=asked.lr, steps=asked.steps, warmup_steps=0, decay_steps=asked.steps,
                                                 betas=(0.9, 0.999), clip=params.clip),
                      max_sequence_length=params.pack_tokens, weights=weights, frozen=FROZEN, dtype=getattr(torch, params.dtype),
                      expert_bias_rate=0.0, aux_loss=0.0, mtp_depths=asked.depths, mtp_loss_scale=1.0,
                      recompute=params.layout.recompute)
    last = read_answers(kept, params.steps)
    trainer.load_weights(before)
    worth = {"before": acceptance(trainer, read_answers(started, 0), params.pack_tokens)}
    trainer.load_weights(weights)
    worth["rl"] = acceptance(trainer, last, params.pack_tokens)
    train_on(trainer, [sample.sequence for sample in last_rollouts(kept, params)], params, "healing", work, log)
    worth["healed"] = acceptance(trainer, last, params.pack_tokens)
    healed = {**weights, **trainer.weights()}
    del trainer
    parallel.leave_layout()
    return healed, worth


def last_rollouts(kept: Path, params: Stage) -> list[Sample]:
    """What the policy said in the last `healing.rollouts` steps."""
    steps = range(max(0, params.steps - params.healing.rollouts), params.steps)
    workers = params.generators.count
    return [sample for step in steps for worker in range(workers) for sample in read_draw(draw_path(kept, step, worker, workers)).samples]


def answers_path(kept: Path, version: int) -> Path:
    """Where the greedy answers to held-out prompts of the weights after `version` steps are kept."""
    return kept / f"answers-{version:08d}.json"


def read_answers(kept: Path, version: int) -> list[Answer]:
    """Those answers: (ids of the prompt, ids of the answer)."""
    return [(prompt, answer) for prompt, answer in json.loads(answers_path(kept, version).read_text())]
