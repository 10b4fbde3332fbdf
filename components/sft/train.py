"""What every rank of fine-tuning runs: conversations into packs, packs into steps."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from components.sft.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.data.chat import encode_demonstration
from stagecraft.data.packing import pack_bins
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import checkpoints, parallel
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Batch, Optimization, Trainer
from stagecraft.model.config import Architecture

Conversation = tuple[list[int], list[int]]


@dataclass
class Result:
    """The fine-tuned model and how it was fed."""

    weights: dict[str, Tensor]
    conversations: int
    epochs: float
    packing_efficiency: float
    tokens_per_second: float


class Packs:
    """The conversations, packed and shuffled anew for each epoch, as an endless sequence of packs."""

    def __init__(self, conversations: list[Conversation], capacity: int, seed: int):
        self.conversations, self.seed = conversations, seed
        self.lengths = [len(ids) - 1 for ids, _ in conversations]
        self.bins = pack_bins(self.lengths, capacity)
        self.efficiency = sum(self.lengths) / (capacity * len(self.bins))
        self._epoch, self._order = -1, list(range(len(self.bins)))

    def __getitem__(self, index: int) -> Batch:
        epoch, at = divmod(index, len(self.bins))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self.bins)))
            random.Random(f"{self.seed}/{epoch}").shuffle(self._order)
        return packed_batch([self.conversations[i] for i in self.bins[self._order[at]]])


def train(params: Params, architecture: Architecture, weights: dict[str, Tensor], corpus: Path, work: Path, log: RunLog | None) -> Result:
    """Fine-tune on this rank; `log` on rank 0 only."""
    torch.set_num_threads(1)
    parallel.initialize(params.seed)
    rank, world = dist.get_rank(), dist.get_world_size()
    packs = Packs(read_conversations(corpus), params.pack_tokens, params.seed)
    trainer = Trainer(
        architecture,
        Optimization(lr=params.lr, min_lr=params.min_lr, steps=params.steps, warmup_steps=params.warmup_steps, decay_steps=params.decay_steps,
                     weight_decay=params.weight_decay, clip=params.clip),
        max_sequence_length=params.pack_tokens, weights=weights, mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale)
    checkpoints.resume(work / "checkpoints", trainer)
    first, started, tokens = trainer.steps_done, time.monotonic(), 0
    if log:
        log.rewind(first)
        log.note(f"{len(packs.conversations)} conversations in {len(packs.bins)} packs of {params.pack_tokens} tokens, "
                 f"{packs.efficiency:.1%} full")

    def do_step() -> dict[str, float]:
        nonlocal tokens
        start = trainer.steps_done * params.packs_per_step
        batches = [packs[index] for index in range(start + rank, start + params.packs_per_step, world)]
        result = trainer.step(batches)
        tokens += sum(batch.tokens.numel() for batch in batches) * world
        mtp = {f"mtp_loss_{depth}": loss for depth, loss in enumerate(result.mtp_losses, 1)}
        return {"loss": result.loss, "lr": result.lr, "grad_norm": result.grad_norm, **mtp}

    def save_when_due() -> None:
        if trainer.steps_done % params.checkpoint_every == 0 and trainer.steps_done < params.steps:
            checkpoints.save(work / "checkpoints", trainer)

    if log is None:
        while trainer.steps_done < params.steps:
            do_step()
            save_when_due()
    else:
        with log.bar("sft", params.steps, done=first) as bar:
            while trainer.steps_done < params.steps:
                values = do_step()
                log.step(trainer.steps_done, **values)
                bar.advance(loss=values["loss"], tokens_per_second=tokens / (time.monotonic() - started))
                save_when_due()
    packs_seen = params.steps * params.packs_per_step / len(packs.bins)
    result = Result(canonical(trainer, weights), len(packs.conversations), packs_seen, packs.efficiency,
                    tokens / (time.monotonic() - started) if tokens else 0.0)
    parallel.shutdown()
    return result


def canonical(trainer: Trainer, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors; those the trainer did not build (an MTP block left out) are taken over unchanged."""
    return {**weights, **trainer.weights()}


def read_conversations(corpus: Path) -> list[Conversation]:
    """Every demonstration as token ids and loss mask.

    Raises:
        UserError: there are none.
    """
    tokenizer = load_tokenizer(corpus / "tokenizer")
    path = corpus / "tasks" / "sft.jsonl"
    conversations = [encode_demonstration(tokenizer, row) for row in read_rows(path)]
    if not conversations:
        raise UserError("no conversations", where=str(path), mend="raise curate.tasks.sft_rows")
    return conversations
