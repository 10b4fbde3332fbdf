"""The loop of one stage: take completions, update, hand the weights over; resumable at every checkpoint."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from components.rl.generator import Job
from components.rl.loss import PolicyLoss
from components.rl.params import Stage
from components.rl.reference import Reference
from components.rl.rollouts import Sample, batches, means_by_family, weigh
from components.rl.sources import source_of_completions
from stagecraft.contract.files import write_atomic
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import checkpoints, parallel
from stagecraft.engine.trainer import Batch, Optimization, Trainer
from stagecraft.model.config import Architecture

# The router keeps its values: a router that moves while the generator samples breaks the agreement of the two.
FROZEN = ("router",)
KEPT = ("rollouts.jsonl", "episodes.jsonl")  # answers to the corpus's prompts, conversations with environments


def train(params: Stage, architecture: Architecture, weights: dict[str, Tensor], job: Job, work: Path, before: int,
          log: RunLog) -> dict[str, Tensor]:
    """Run GRPO, on verifiers' rewards or those of a judge; returns the canonical tensors, the MTP block as it came.

    Args:
        weights: canonical tensors of `job.model`.
        job: what the generators are to do, from the stage's first step on.
        work: directory of this stage alone, kept between runs.
        before: steps of the stages before, behind which this one's are counted in curve and rollouts.
    """
    parallel.initialize(params.seed)
    trainer = Trainer(architecture, Optimization(lr=params.lr, steps=params.steps, warmup_steps=params.warmup_steps,
                                                 decay_steps=round(params.decay_share * params.steps), betas=(0.9, 0.999),
                                                 clip=params.clip),
                      max_sequence_length=params.pack_tokens, weights=weights, frozen=FROZEN, expert_bias_rate=0.0, aux_loss=0.0)
    checkpoints.resume(work / "checkpoints", trainer)
    log.rewind(before + trainer.steps_done, "train")
    kept = sum(rewind_rollouts(work / name, before + trainer.steps_done) for name in KEPT)
    if trainer.steps_done == params.steps:  # killed after its last step
        return _finished(weights, trainer)
    source = source_of_completions(replace(job, first=trainer.steps_done), trainer.weights())
    reference = Reference(architecture, weights, params.pack_tokens, params.temperature) if params.kl else None
    torch.set_num_threads(params.threads)
    loss = PolicyLoss(params.temperature, params.ratio_clip_low, params.ratio_clip_high, params.importance_limit, params.mismatch_limit,
                      params.kl)
    with (log.bar(work.name, params.steps, done=trainer.steps_done) as bar,
          (work / KEPT[0]).open("a") as answers, (work / KEPT[1]).open("a") as episodes):
        while trainer.steps_done < params.steps:
            step = trainer.steps_done
            clock = [time.monotonic()]
            draw = source.take(step)
            clock.append(time.monotonic())
            weigh(draw.samples, params)
            packs = batches(draw.samples, params)
            if reference:
                reference.attach(packs)
            values = update(trainer, loss, packs, params)
            clock.append(time.monotonic())
            source.hand_over(trainer.steps_done, trainer.weights())
            clock.append(time.monotonic())
            seconds = dict(zip(("seconds_wait", "seconds_update", "seconds_handover"), (b - a for a, b in pairwise(clock))))
            drawn = summary(draw.samples, step)
            log.step(before + trainer.steps_done, **drawn, **values, seconds_generate=draw.seconds, **seconds)
            share = params.rollouts_kept * (step + 1) // params.steps  # as many of every step
            for sample in draw.samples[:max(0, share - kept)]:
                (episodes if sample.messages else answers).write(json.dumps(sample.record(before + step)) + "\n")
                kept += 1
            answers.flush()
            episodes.flush()
            bar.advance(reward=drawn["reward"], mismatch=values["mismatch"])
            if trainer.steps_done % params.checkpoint_every == 0 and trainer.steps_done < params.steps:
                source.finish(trainer.steps_done)
                checkpoints.save(work / "checkpoints", trainer)
                for path in job.kept.glob("*.jsonl"):
                    if int(path.name[:8]) < min(trainer.steps_done, params.steps - params.healing.rollouts):
                        path.unlink()
    source.close()
    checkpoints.save(work / "checkpoints", trainer)
    return _finished(weights, trainer)


def _finished(weights: dict[str, Tensor], trainer: Trainer) -> dict[str, Tensor]:
    result = {**weights, **trainer.weights()}
    parallel.shutdown()
    return result


def update(trainer: Trainer, loss: PolicyLoss, packs: list[Batch], params: Stage) -> dict[str, float]:
    """One optimizer step over the packs; a step whose groups all agree changes nothing."""
    if not packs:
        trainer.pass_over()
        return {"loss": 0.0, "grad_norm": 0.0, **dict.fromkeys(PolicyLoss.REPORTED, 0.0)}
    result = trainer.step(packs, loss)
    spoken = max(result.sums["spoken"], 1)
    return {"loss": result.loss, "grad_norm": result.grad_norm, **{name: result.sums[name] / spoken for name in PolicyLoss.REPORTED}}


def summary(samples: list[Sample], step: int) -> dict[str, float]:
    """Figures of one step's rollouts."""
    count = len(samples)
    return {
        "reward": sum(sample.reward for sample in samples) / count,
        "taught": sum(sample.advantage != 0 for sample in samples) / count,
        "finished": sum(sample.finished for sample in samples) / count,
        "malformed": sum(sample.malformed for sample in samples) / count,
        "tokens": sum(sum(sample.mask) for sample in samples),
        "staleness": step - min(sample.version for sample in samples),
        **means_by_family(samples),
        **({"verified": sum(sample.parts["verified"] for sample in samples) / count} if "verified" in samples[0].parts else {}),
    }


def rewind_rollouts(path: Path, step: int) -> int:
    """Forget the rollouts of steps that will be drawn again; returns how many are left."""
    lines = path.read_text().splitlines() if path.exists() else []
    left = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    write_atomic(path, "".join(line + "\n" for line in left))
    return len(left)
