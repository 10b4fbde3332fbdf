"""What every rank of fine-tuning runs: conversations into packs, packs into steps."""

from __future__ import annotations

import random
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
from stagecraft.engine import loop, parallel
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Batch, Optimization, StepResult, Trainer
from stagecraft.model.config import Architecture

Conversation = tuple[list[int], list[int]]


@dataclass
class Result:
    """The fine-tuned model and how it was fed."""

    weights: dict[str, Tensor]
    conversations: int
    epochs: float
    packing_efficiency: float
    tokens_per_second: float  # of the assistant's, the ones with a loss


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
    trainer = Trainer(architecture, Optimization.of(params), max_sequence_length=params.pack_tokens, weights=weights,
                      mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale)
    if log:
        log.note(f"{len(packs.conversations)} conversations in {len(packs.bins)} packs of {params.pack_tokens} tokens, "
                 f"{packs.efficiency:.1%} full")

    def step() -> StepResult:
        start = trainer.steps_done * params.packs_per_step
        return trainer.step([packs[index] for index in range(start + rank, start + params.packs_per_step, world)])

    rate = loop.run(trainer, step, name="sft", work=work, checkpoint_every=params.checkpoint_every, log=log)
    epochs = params.steps * params.packs_per_step / len(packs.bins)
    # An MTP block that the trainer did not build is taken over unchanged.
    result = Result({**weights, **trainer.weights()}, len(packs.conversations), epochs, packs.efficiency, rate)
    parallel.shutdown()
    return result


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
