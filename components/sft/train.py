"""What every rank of fine-tuning runs: conversations into packs, packs into steps."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from components.sft.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.data.chat import encode_demonstration
from stagecraft.data.packing import pack_stream
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
    packing_efficiency: float
    tokens_per_second: float  # of the assistant's, the ones with a loss


class Packs:
    """The conversations in packs, `packs_per_step` at a time: every step is a random sample, every epoch a new shuffle."""

    def __init__(self, conversations: list[Conversation], params: Params):
        self.conversations, self.params = conversations, params
        self.lengths = [len(ids) - 1 for ids, _ in conversations]
        self._steps: list[list[list[int]]] = []
        self.epochs = 0

    def __getitem__(self, step: int) -> list[list[int]]:
        """The packs of a step, as indices of conversations."""
        while step >= len(self._steps):
            order = list(range(len(self.conversations)))
            random.Random(f"{self.params.seed}/{self.epochs}").shuffle(order)
            found = list(pack_stream(self.lengths, order, self.params.pack_tokens, self.params.packs_per_step))
            if not found:
                raise UserError(f"{len(order)} conversations do not fill one step of {self.params.packs_per_step} packs of "
                                f"{self.params.pack_tokens} tokens", where="sft", mend="lower pack_tokens or packs_per_step")
            self._steps += found
            self.epochs += 1
        return self._steps[step]

    def batch(self, pack: list[int]) -> Batch:
        """One pack as a microbatch."""
        return packed_batch([self.conversations[index] for index in pack], multiple=self.params.layout.tensor)

    def efficiency(self, steps: int) -> float:
        """Share of the places of the first `steps` steps that hold a token."""
        used = sum(self.lengths[index] for step in range(steps) for pack in self[step] for index in pack)
        return used / (steps * self.params.packs_per_step * self.params.pack_tokens)


def train(params: Params, architecture: Architecture, weights: dict[str, Tensor], corpus: Path, work: Path, log: RunLog | None) -> Result:
    """Fine-tune on this rank; `log` on rank 0 only."""
    torch.set_num_threads(1)
    parallel.initialize(params.seed, params.layout)
    first, share = parallel.share(params.packs_per_step, "sft: packs_per_step")
    packs = Packs(read_conversations(corpus), params)
    efficiency = packs.efficiency(params.steps)
    trainer = Trainer(architecture, Optimization.of(params), max_sequence_length=params.pack_tokens, weights=weights,
                      mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale)
    if log:
        log.note(f"{len(packs.conversations)} conversations, {params.packs_per_step} packs of {params.pack_tokens} tokens per step, "
                 f"{efficiency:.1%} full; {packs.epochs} passes begun")

    def step() -> StepResult:
        return trainer.step([packs.batch(pack) for pack in packs[trainer.steps_done][first:first + share]])

    rate = loop.run(trainer, step, name="sft", work=work, checkpoint_every=params.checkpoint_every, log=log)
    # An MTP block that the trainer did not build is taken over unchanged.
    result = Result({**weights, **trainer.weights()}, len(packs.conversations), efficiency, rate)
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
