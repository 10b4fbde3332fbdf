"""What every rank of fine-tuning runs: conversations into packs, packs into steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from components.sft.conversations import Conversation, Encoded, encode
from components.sft.params import Modes, Params, Stage
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.data.packing import pack_stream
from stagecraft.engine import loop, parallel
from stagecraft.engine.batch import Batch
from stagecraft.engine.collectives import FirstRank
from stagecraft.engine.computes import record
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Optimization, StepResult, Trainer
from stagecraft.engine.watchdog import group_timeout, of_this_rank
from stagecraft.model.config import Architecture


@dataclass
class Result:
    """The fine-tuned model and how it was fed."""

    weights: dict[str, Tensor]
    conversations: int
    skipped: int  # bad rows of the files
    packing_efficiency: float


class Packs:
    """A stage's conversations in packs, `packs_per_step` at a time: every step is a random sample, every epoch a new shuffle.

    Args:
        seed: of the shuffles.
    """

    def __init__(self, conversations: Sequence[Conversation], stage: Stage, seed: int):
        self.conversations, self.stage, self.seed = conversations, stage, seed
        self.lengths = [len(ids) - 1 for ids, _ in conversations]
        self._steps: list[list[list[int]]] = []
        self.epochs = 0

    def __getitem__(self, step: int) -> list[list[int]]:
        """The packs of one of the stage's steps, as indices of conversations."""
        while step >= len(self._steps):
            order = list(range(len(self.conversations)))
            random.Random(f"{self.seed}/{self.epochs}").shuffle(order)
            found = list(pack_stream(self.lengths, order, self.stage.pack_tokens, self.stage.packs_per_step))
            if not found:
                raise UserError(f"{len(order)} conversations do not fill one step of {self.stage.packs_per_step} packs of "
                                f"{self.stage.pack_tokens} tokens", where="sft", mend="lower pack_tokens or packs_per_step")
            self._steps += found
            self.epochs += 1
        return self._steps[step]

    def batch(self, pack: list[int]) -> Batch:
        """One pack as a microbatch; its loss is summed over tokens, or over conversations of the mean over each one's tokens."""
        held = [self.conversations[index] for index in pack]
        if self.stage.loss_mean == "conversations":
            held = [(ids, np.divide(mask, np.sum(mask))) for ids, mask in held]
        return packed_batch(held)

    def spoken(self, step: int) -> int:
        """Tokens with a loss in a step."""
        return sum(int(np.sum(self.conversations[index][1])) for pack in self[step] for index in pack)

    def used(self) -> int:
        """Places of the stage's steps that hold a token."""
        return sum(self.lengths[index] for step in range(self.stage.steps) for pack in self[step] for index in pack)

    def places(self) -> int:
        """Places there are."""
        return self.stage.steps * self.stage.packs_per_step * self.stage.pack_tokens


def train(params: Params, architecture: Architecture, weights: dict[str, Tensor], corpus: Path, work: Path, log: RunLog | None) -> Result:
    """Fine-tune on this rank; `log` on rank 0 only."""
    torch.set_num_threads(1)
    parallel.initialize(params.seed, params.layout, group_timeout(params.hang_seconds))
    stages = params.stages
    first = FirstRank()
    encoded: dict[tuple[Modes, int], Encoded] = {}
    for stage in stages:
        key = stage.modes, stage.pack_tokens
        encoded[key] = encoded.get(key) or encode(corpus, params, stage, work / f"conversations-{len(encoded)}", first, log)
    parts = [Packs(encoded[stage.modes, stage.pack_tokens], stage, params.seed + number) for number, stage in enumerate(stages)]
    skipped = sorted({row for each in encoded.values() for row in each.skipped})
    efficiency = sum(part.used() for part in parts) / sum(part.places() for part in parts)
    shares = [parallel.share(stage.packs_per_step, "sft: packs_per_step") for stage in stages]
    trainer = Trainer(architecture, Optimization.of(params), max_sequence_length=max(stage.pack_tokens for stage in stages),
                      weights=weights, dtype=getattr(torch, params.dtype), mtp_depths=params.mtp_depths,
                      mtp_loss_scale=params.mtp_loss_scale, recompute=params.layout.recompute,
                      expert_bias_rate=0.0, aux_loss=0.0)  # the routers' balance is pre-training's; a pack is no batch to balance over
    if log:
        record(log, trainer, params.dtype)
        if skipped:
            log.note(f"{len(skipped)} bad rows skipped, the first: {skipped[0]}")
        for part in parts:
            log.note(f"{part.stage.steps} steps with the mean over {part.stage.loss_mean}: {len(part.conversations)} conversations, "
                     f"{part.stage.packs_per_step} packs of {part.stage.pack_tokens} tokens per step, "
                     f"{part.used() / part.places():.1%} full; {part.epochs} passes begun")
    ends = list(accumulate(stage.steps for stage in stages))

    def step() -> StepResult:
        number = next(number for number, end in enumerate(ends) if trainer.steps_done < end)
        packs, (begin, share), at = parts[number], shares[number], trainer.steps_done - ends[number] + stages[number].steps
        result = trainer.step([packs.batch(pack) for pack in packs[at][begin:begin + share]])
        return replace(result, tokens=packs.spoken(at))

    with of_this_rank(work, params.hang_seconds) as watchdog:
        loop.run(trainer, step, name="sft", work=work, checkpoint_every=params.checkpoint_every, log=log, keep=params.keep_checkpoints,
                 max_skipped=params.max_skipped_steps, beat=watchdog.beat)
    # An MTP block that the trainer did not build is taken over unchanged.
    result = Result({**weights, **trainer.weights()}, len(parts[0].conversations), len(skipped), efficiency)
    parallel.shutdown()
    return result
