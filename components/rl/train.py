"""The loop of one stage: take completions, update, hand the weights over; every rank runs it; resumable at every checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from components.rl.generator import Job
from components.rl.lead import KEPT, Lead, rewind_rollouts
from components.rl.loss import PolicyLoss
from components.rl.params import Stage
from components.rl.reference import Reference
from components.rl.rollouts import Sample, batches
from components.rl.supervised import MAX_SKIPPED
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import checkpoints, loop, parallel
from stagecraft.engine.collectives import FirstRank
from stagecraft.engine.computes import record
from stagecraft.engine.trainer import Optimization, StepResult, Trainer
from stagecraft.engine.watchdog import Watchdog, group_timeout, of_this_rank
from stagecraft.model.config import Architecture

# The router keeps its values: a router that moves while the generator samples breaks the agreement of the two.
FROZEN = ("router",)


def train(params: Stage, architecture: Architecture, weights: dict[str, Tensor], job: Job, work: Path, before: int, first: FirstRank,
          log: RunLog | None) -> dict[str, Tensor]:
    """Run GRPO, on verifiers' rewards or those of a judge; returns the canonical tensors on rank 0, the MTP block as it came.

    Args:
        weights: canonical tensors of `job.model`, on every rank.
        job: what the generators are to do, from the stage's first step on.
        work: directory of this stage alone, kept between runs.
        before: steps of the stages before, behind which this one's are counted in curve, rollouts and what is told.
        log: on rank 0 only.

    Raises:
        UserError: too many steps in a row had no finite loss and gradient, or all that had something to teach.
    """
    parallel.initialize(params.seed, params.layout, group_timeout(params.hang_seconds))
    trainer = Trainer(architecture, Optimization(lr=params.lr, steps=params.steps, warmup_steps=params.warmup_steps,
                                                 decay_steps=round(params.decay_share * params.steps), betas=(0.9, 0.999),
                                                 clip=params.clip),
                      max_sequence_length=params.pack_tokens, weights=weights, frozen=FROZEN, dtype=getattr(torch, params.dtype),
                      expert_bias_rate=0.0, aux_loss=0.0, recompute=params.layout.recompute)
    checkpoints.resume(work / "checkpoints", trainer, log.note if log else lambda _: None)
    kept = 0
    if log:
        record(log, trainer, params.dtype)
        log.rewind(before + trainer.steps_done, "train")
        kept = sum(rewind_rollouts(work / name, before + trainer.steps_done) for name in KEPT)
    if trainer.steps_done < params.steps:  # else it was killed after its last step
        reference = Reference(architecture, weights, params) if params.kl else None
        torch.set_num_threads(params.threads)
        now = trainer.weights()
        with Lead(replace(job, first=trainer.steps_done), now, work, before, kept, log) if log else nullcontext() as lead:
            first.broadcast()  # that the prompts were tried, if the curriculum wants it: a watchdog may have less patience than that takes
            with of_this_rank(work, params.hang_seconds) as watchdog:
                _train(trainer, params, reference, work, before, first, lead, watchdog)
        del reference
    if log and none_was_finite([row for row in log.curve() if row["step"] > before]):
        raise UserError("none of the steps that taught something had a finite loss and gradient", where=work.name,
                        mend="lower the learning rate")
    trained = {**weights, **trainer.weights()}
    del trainer
    parallel.leave_layout()
    return trained


def none_was_finite(curve: list[dict[str, float]]) -> bool:
    """Steps of a stage were skipped, and none changed the weights."""
    return any("loss" not in row for row in curve) and not any("mismatch" in row for row in curve)


def _train(trainer: Trainer, params: Stage, reference: Reference | None, work: Path, before: int, first: FirstRank, lead: Lead | None,
           watchdog: Watchdog) -> None:
    def beat() -> None:
        watchdog.beat(trainer.steps_done)

    loss = PolicyLoss(params.temperature, params.ratio_clip_low, params.ratio_clip_high, params.importance_limit, params.mismatch_limit,
                      params.kl)
    skipped = 0
    while trainer.steps_done < params.steps:
        samples = first.broadcast(lead and lead.take(trainer.steps_done))
        beat()
        result = update(trainer, loss, samples, params, reference)
        if result:
            skipped = skipped + 1 if result.skipped else 0
        if skipped > MAX_SKIPPED:
            raise loop.too_many_skipped(result, before + trainer.steps_done, MAX_SKIPPED, work.name)
        if lead:
            lead.updated()
        weights, done = trainer.weights(), trainer.steps_done
        if lead:
            lead.handed_over(done, weights, result)
        beat()
        if done % params.checkpoint_every == 0 and done < params.steps:
            if lead:
                lead.before_checkpoint(done)
            first.broadcast()  # that it is drawn: NCCL's patience may be shorter than that takes
            beat()
            checkpoints.save(work / "checkpoints", trainer)
            if lead:
                lead.after_checkpoint(done)
            beat()
    if lead:
        lead.finish()
    first.broadcast()
    beat()
    checkpoints.save(work / "checkpoints", trainer)


def update(trainer: Trainer, loss: PolicyLoss, samples: list[Sample], params: Stage,
           reference: Reference | None = None) -> StepResult | None:
    """One optimizer step over the samples, the same ones on every rank; where none teaches anything it changes nothing, and is None."""
    if not samples:
        trainer.pass_over()
        return None
    packs = batches(samples, params)
    if reference:
        reference.attach(packs)
    return trainer.step(packs, loss)
