"""What every rank of fine-tuning runs: conversations into packs, packs into steps."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.sft.params import Params
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.data.conversations import encode_conversation
from stagecraft.data.conversations import read_conversations as read_file
from stagecraft.data.modes import draw_mode, in_mode
from stagecraft.data.packing import pack_stream
from stagecraft.data.tasks import read_rows
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine import loop, parallel
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Batch, Optimization, StepResult, Trainer
from stagecraft.model.config import Architecture

Conversation = tuple[list[int], list[int]]  # token ids, loss mask


@dataclass
class Result:
    """The fine-tuned model and how it was fed."""

    weights: dict[str, Tensor]
    conversations: int
    skipped: int  # bad rows of the files
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

    def batch(self, pack: list[int], conversation_mean: bool = False) -> Batch:
        """One pack as a microbatch; its loss is summed over tokens, or over conversations of the mean over each one's tokens."""
        held = [self.conversations[index] for index in pack]
        if conversation_mean:
            held = [(ids, [each / sum(mask) for each in mask]) for ids, mask in held]
        return packed_batch(held, multiple=self.params.layout.tensor)

    def spoken(self, step: int) -> int:
        """Tokens with a loss in a step."""
        return sum(sum(self.conversations[index][1]) for pack in self[step] for index in pack)

    def efficiency(self, steps: int) -> float:
        """Share of the places of the first `steps` steps that hold a token."""
        used = sum(self.lengths[index] for step in range(steps) for pack in self[step] for index in pack)
        return used / (steps * self.params.packs_per_step * self.params.pack_tokens)


def train(params: Params, architecture: Architecture, weights: dict[str, Tensor], corpus: Path, work: Path, log: RunLog | None) -> Result:
    """Fine-tune on this rank; `log` on rank 0 only."""
    torch.set_num_threads(1)
    parallel.initialize(params.seed, params.layout)
    first, share = parallel.share(params.packs_per_step, "sft: packs_per_step")
    conversations, skipped = read_conversations(corpus, params)
    packs = Packs(conversations, params)
    efficiency = packs.efficiency(params.steps)
    trainer = Trainer(architecture, Optimization.of(params), max_sequence_length=params.pack_tokens, weights=weights,
                      mtp_depths=params.mtp_depths, mtp_loss_scale=params.mtp_loss_scale)
    if log:
        if skipped:
            log.note(f"{len(skipped)} bad rows skipped, the first: {skipped[0]}")
        log.note(f"{len(packs.conversations)} conversations, {params.packs_per_step} packs of {params.pack_tokens} tokens per step, "
                 f"{efficiency:.1%} full; {packs.epochs} passes begun")

    def step() -> StepResult:
        at = trainer.steps_done
        second = at >= params.steps - params.conversation_mean_steps
        result = trainer.step([packs.batch(pack, second) for pack in packs[at][first:first + share]])
        return replace(result, tokens=packs.spoken(at))

    tokens, seconds = loop.run(trainer, step, name="sft", work=work, checkpoint_every=params.checkpoint_every, log=log)
    # An MTP block that the trainer did not build is taken over unchanged.
    result = Result({**weights, **trainer.weights()}, len(packs.conversations), len(skipped), efficiency, tokens / seconds)
    parallel.shutdown()
    return result


def read_conversations(corpus: Path, params: Params) -> tuple[list[Conversation], list[str]]:
    """Every conversation as token ids and loss mask, and the bad rows that were skipped, as "file:line: reason".

    Raises:
        UserError: there are none, or a bad row is not to be skipped.
    """
    tokenizer = load_tokenizer(corpus / "tokenizer")
    path = corpus / "tasks" / "sft.jsonl"
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    if params.data.tasks:
        rows += [{"messages": [*row["messages"], {"role": "assistant", "content": row["demonstration"]}], "tools": row.get("tools")}
                 for row in read_rows(path)]
    for name in params.data.files:
        read = read_file(Path(name), skip_bad=params.data.bad_rows == "skip")
        rows += read.rows
        skipped += [f"{name}:{number}: {reason}" for number, reason in read.skipped]
    shares = asdict(params.modes)
    moded = (in_mode(row, draw_mode(params.seed, number, shares), params.seed + number) for number, row in enumerate(rows))
    conversations = [encode_conversation(tokenizer, row, thinks) for row, thinks in moded]
    if not conversations:
        raise UserError("no conversations", where=str(path), mend="raise curate.tasks.sft_rows, or name sft.data.files")
    return conversations, skipped
