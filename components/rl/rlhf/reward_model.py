"""A generative reward model of our own: the fine-tuned model, taught to score two answers by generated comparisons."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from components.rl.params import Stage
from components.rl.rlhf.comparisons import Comparison, comparisons, question
from components.rl.supervised import train_on, training
from stagecraft.checkpoint.canonical import write_checkpoint
from stagecraft.contract.files import whole_directory
from stagecraft.contract.runlog import RunLog
from stagecraft.data.conversations import encode_conversation
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import parallel
from stagecraft.engine.collectives import FirstRank
from stagecraft.engine.trainer import Optimization, Trainer
from stagecraft.engine.watchdog import group_timeout
from stagecraft.model.config import Architecture

REWARD_MODEL = "reward_model"  # in the work directory


def train_reward_model(params: Stage, architecture: Architecture, weights: Mapping[str, Tensor], tokenizer: Path, families: list[str],
                       work: Path, first: FirstRank, log: RunLog | None) -> None:
    """Train it and write its checkpoint, unless a run that was killed had done so; every rank runs it, and resumes at its checkpoints.

    Args:
        weights: canonical tensors of the fine-tuned model.
        tokenizer: a directory with the tokenizer and its chat template.
        families: of tasks, to draw comparisons from.
        log: on rank 0 only.
    """
    asked, final = params.preferences, work / REWARD_MODEL
    if first.broadcast(final.exists()):
        return
    parallel.initialize(params.seed, params.layout, group_timeout(params.hang_seconds))
    trainer = Trainer(architecture, Optimization(lr=asked.lr, steps=asked.steps, decay_steps=asked.steps, clip=params.clip),
                      max_sequence_length=params.pack_tokens, weights=weights, dtype=getattr(torch, params.dtype),
                      expert_bias_rate=0.0, aux_loss=0.0, recompute=params.layout.recompute)
    loaded = load_tokenizer(tokenizer)
    rows = [encode_conversation(loaded, {"messages": [
        {"role": "user", "content": question(asked.principle, each.request, each.answers)},
        {"role": "assistant", "content": f"<think></think> {each.scores[0]} {each.scores[1]}"}]}) for each in taught(params, families)]
    train_on(trainer, rows, params, REWARD_MODEL, work, log)
    trained = {**weights, **trainer.weights()}
    if first.here:
        with whole_directory(final) as directory:
            write_checkpoint(directory, architecture, trained.items(), tokenizer)
        shutil.rmtree(training(work, REWARD_MODEL))  # optimizer state, of use no more
    del trainer
    parallel.leave_layout()


def taught(params: Stage, families: list[str]) -> Iterator[Comparison]:
    """The comparisons that it learns from."""
    return comparisons(params.preferences.comparisons, f"{params.seed}/comparisons", families)
