"""The loop: draw, judge, update, hand the weights over; resumable at every checkpoint."""

from __future__ import annotations

import json
import random
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.rl.loss import PolicyLoss
from components.rl.params import Params
from components.rl.rollouts import Sample, batches, draw, mean_reward_by_family
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_atomic
from stagecraft.contract.runlog import RunLog
from stagecraft.data.chat import encode_prompt
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import checkpoints, parallel
from stagecraft.engine.trainer import Batch, Optimization, Trainer
from stagecraft.inference.engine import Engine
from stagecraft.model.config import Architecture

# The router keeps its values: a router that moves while the generator samples breaks the agreement of the two.
FROZEN = ("router",)


def train(params: Params, architecture: Architecture, weights: dict[str, Tensor], corpus: Path, model: Path,
          log: RunLog) -> dict[str, Tensor]:
    """Run GRPO; returns the canonical tensors, the MTP block as it came."""
    parallel.initialize(params.seed)
    tokenizer = load_tokenizer(corpus / "tokenizer")
    rows = read_prompts(corpus / "tasks" / "rl.jsonl", tokenizer, params)
    trainer = Trainer(architecture, Optimization(lr=params.lr, min_lr=params.lr, steps=params.steps, warmup_steps=params.warmup_steps,
                                                 betas=(0.9, 0.999), clip=params.clip),
                      max_sequence_length=params.pack_tokens, weights=weights, frozen=FROZEN, expert_bias_rate=0.0, aux_loss=0.0)
    checkpoints.resume(log.work / "checkpoints", trainer)
    log.rewind(trainer.steps_done)
    kept = rewind_rollouts(log.work / "rollouts.jsonl", trainer.steps_done)
    engine = Engine(model, max_model_len=params.max_prompt_tokens + params.max_new_tokens,
                    max_num_seqs=params.prompts_per_step * params.generations_per_prompt, seed=params.seed, threads=params.threads)
    torch.set_num_threads(params.threads)
    if trainer.steps_done:
        engine.update_weights({**weights, **trainer.weights()}.items())
    loss = PolicyLoss(params.temperature, params.ratio_clip_low, params.ratio_clip_high, params.importance_limit, params.mismatch_limit)
    with log.bar("rl", params.steps, done=trainer.steps_done) as bar, (log.work / "rollouts.jsonl").open("a") as stream:
        while trainer.steps_done < params.steps:
            step = trainer.steps_done
            clock = [time.monotonic()]
            samples = draw(engine, tokenizer, pick(rows, step, params), params, seed=params.seed * 1_000_003 + step)
            clock.append(time.monotonic())
            values = update(trainer, loss, batches(samples, params), params)
            clock.append(time.monotonic())
            engine.update_weights(trainer.weights().items())
            clock.append(time.monotonic())
            seconds = dict(zip(("seconds_generate", "seconds_update", "seconds_handover"), (b - a for a, b in pairwise(clock))))
            drawn = summary(samples)
            log.step(trainer.steps_done, **drawn, **values, **seconds)
            for sample in samples[:max(0, params.rollouts_kept - kept)]:
                stream.write(json.dumps(sample.record(step)) + "\n")
                kept += 1
            stream.flush()
            bar.advance(reward=drawn["reward"], mismatch=values["mismatch"])
            if trainer.steps_done % params.checkpoint_every == 0 and trainer.steps_done < params.steps:
                checkpoints.save(log.work / "checkpoints", trainer)
    engine.close()
    result = {**weights, **trainer.weights()}
    parallel.shutdown()
    return result


def update(trainer: Trainer, loss: PolicyLoss, packs: list[Batch], params: Params) -> dict[str, float]:
    """One optimizer step over the packs; a step whose groups all agree changes nothing."""
    if not packs:
        trainer.steps_done += 1
        return {"loss": 0.0, "grad_norm": 0.0, **dict.fromkeys(PolicyLoss.REPORTED, 0.0)}
    result = trainer.step(packs, loss)
    spoken = max(result.sums["spoken"], 1)
    return {"loss": result.loss, "grad_norm": result.grad_norm, **{name: result.sums[name] / spoken for name in PolicyLoss.REPORTED}}


def summary(samples: list[Sample]) -> dict[str, float]:
    """Figures of one step's rollouts."""
    count = len(samples)
    return {
        "reward": sum(sample.reward for sample in samples) / count,
        "taught": sum(sample.advantage != 0 for sample in samples) / count,
        "finished": sum(sample.completion.finished for sample in samples) / count,
        "tokens": sum(len(sample.completion.token_ids) for sample in samples),
        **{f"reward_{family}": reward for family, reward in mean_reward_by_family(samples).items()},
    }


def pick(rows: list[dict[str, Any]], step: int, params: Params) -> list[dict[str, Any]]:
    """The prompts of a step: a new shuffle for every pass over the rows."""
    positions = range(step * params.prompts_per_step, (step + 1) * params.prompts_per_step)
    return [rows[order(len(rows), params.seed, at // len(rows))[at % len(rows)]] for at in positions]


@lru_cache(maxsize=2)
def order(count: int, seed: int, epoch: int) -> list[int]:
    """The shuffle of one pass."""
    shuffled = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(shuffled)
    return shuffled


def read_prompts(path: Path, tokenizer: Any, params: Params) -> list[dict[str, Any]]:
    """The task rows whose prompt fits.

    Raises:
        UserError: none does.
    """
    rows = [row for row in read_rows(path) if len(encode_prompt(tokenizer, row)) <= params.max_prompt_tokens]
    if not rows:
        raise UserError(f"no prompt of at most {params.max_prompt_tokens} tokens", where=str(path),
                        mend="raise rl.max_prompt_tokens or curate.tasks.rl_rows")
    return rows


def rewind_rollouts(path: Path, step: int) -> int:
    """Forget the rollouts of steps that will be drawn again; returns how many are left."""
    lines = path.read_text().splitlines() if path.exists() else []
    left = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    write_atomic(path, "".join(line + "\n" for line in left))
    return len(left)
