"""A generative reward model of our own: the fine-tuned model, taught to score two answers by generated comparisons."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from components.rl.params import Stage
from components.rl.rlhf.comparisons import Comparison, comparisons, question
from stagecraft.checkpoint.canonical import write_checkpoint
from stagecraft.contract.runlog import RunLog
from stagecraft.data.conversations import encode_conversation
from stagecraft.data.packing import pack_stream
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import parallel
from stagecraft.engine.first import FirstRank
from stagecraft.engine.packs import own_packs, packed_batch
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.engine.watchdog import of_this_rank, patience
from stagecraft.model.config import Architecture

REWARD_MODEL = "reward_model"  # in the work directory


def train_reward_model(params: Stage, architecture: Architecture, weights: Mapping[str, Tensor], tokenizer: Path, families: list[str],
                       work: Path, first: FirstRank, log: RunLog | None) -> None:
    """Train it and write its checkpoint, unless a run that was killed had done so; every rank runs it.

    Args:
        weights: canonical tensors of the fine-tuned model.
        tokenizer: a directory with the tokenizer and its chat template.
        families: of tasks, to draw comparisons from.
        log: on rank 0 only.
    """
    asked, final = params.preferences, work / REWARD_MODEL
    if first.tells(final.exists()):
        return
    parallel.initialize(params.seed, params.layout, patience(params.hang_seconds))
    trainer = Trainer(architecture, Optimization(lr=asked.lr, steps=asked.steps, decay_steps=asked.steps, clip=params.clip),
                      max_sequence_length=params.pack_tokens, weights=weights, dtype=getattr(torch, params.dtype),
                      expert_bias_rate=0.0, aux_loss=0.0, recompute=params.layout.recompute)
    loaded = load_tokenizer(tokenizer)
    rows = [encode_conversation(loaded, {"messages": [
        {"role": "user", "content": question(asked.principle, each.request, each.answers)},
        {"role": "assistant", "content": f"<think></think> {each.scores[0]} {each.scores[1]}"}]}) for each in taught(params, families)]
    lengths = [len(ids) - 1 for ids, _ in rows]
    packs: list[list[int]] = []
    while len(packs) < asked.steps:
        order = list(range(len(rows)))
        random.Random(f"{params.seed}/reward model/{len(packs)}").shuffle(order)
        packs += [pack for (pack,) in pack_stream(lengths, order, params.pack_tokens, 1)] or [order]
    with (of_this_rank(work, params.hang_seconds) as watchdog,
          log.bar("reward model", asked.steps) if log else nullcontext() as bar):
        for step, pack in enumerate(packs[:asked.steps], 1):
            result = trainer.step([packed_batch([rows[index] for index in own]) for own in own_packs([pack])])
            if log:
                log.step(step, "reward_model", loss=result.loss, grad_norm=result.grad_norm)
                bar.advance(loss=result.loss)
            watchdog.beat(step)
    trained = {**weights, **trainer.weights()}
    if first.here:
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        write_checkpoint(temporary, architecture, trained.items(), tokenizer)
        temporary.rename(final)
    del trainer
    parallel.leave_layout()


def taught(params: Stage, families: list[str]) -> Iterator[Comparison]:
    """The comparisons that it learns from."""
    return comparisons(params.preferences.comparisons, f"{params.seed}/comparisons", families)
