"""MTP healing: the policy has moved away under its MTP block, which learns the policy's own answers; all else stays as it is."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from components.rl.acceptance import Acceptance, Answer, acceptance
from components.rl.params import Stage
from components.rl.rollouts import Sample, draw_path, read_draw
from stagecraft.contract.runlog import RunLog
from stagecraft.data.packing import pack_stream
from stagecraft.engine import checkpoints, parallel
from stagecraft.engine.packs import own_packs, packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.engine.watchdog import of_this_rank, patience
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
    parallel.initialize(params.seed, params.layout, patience(params.hang_seconds))
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
    checkpoints.resume(work / "healing", trainer, log.note if log else lambda _: None)
    if log:
        log.rewind(trainer.steps_done, "healing")
    packs = _packs(last_rollouts(kept, params), params)
    with (of_this_rank(work, params.hang_seconds) as watchdog,
          log.bar("healing", asked.steps, done=trainer.steps_done) if log else nullcontext() as bar):
        for pack in packs[trainer.steps_done:]:
            result = trainer.step([packed_batch([each.sequence for each in own]) for own in own_packs([pack])])
            if log:
                losses = {f"loss_{depth}": value for depth, value in enumerate(result.mtp_losses, 1)}
                log.step(trainer.steps_done, "healing", **losses, grad_norm=result.grad_norm, lr=result.lr)
                bar.advance(**losses)
            if trainer.steps_done % params.checkpoint_every == 0 and trainer.steps_done < asked.steps:
                checkpoints.save(work / "healing", trainer)
            watchdog.beat(trainer.steps_done)
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


def _packs(samples: Sequence[Sample], params: Stage) -> list[list[Sample]]:
    """One pack for every step, in as many shuffled passes as it takes."""
    lengths = [len(sample.prompt) + len(sample.tokens) - 1 for sample in samples]
    packs: list[list[Sample]] = []
    while len(packs) < params.healing.steps:
        order = list(range(len(samples)))
        random.Random(f"{params.seed}/healing/{len(packs)}").shuffle(order)
        full = [pack for (pack,) in pack_stream(lengths, order, params.pack_tokens, 1)] or [order]  # few rollouts do not fill one
        packs += [[samples[index] for index in pack] for pack in full]
    return packs[:params.healing.steps]
