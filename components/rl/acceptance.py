"""How far ahead the MTP block is right: drafts that greedy speculative decoding would accept, and the mean length it goes in one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stagecraft.data.packing import pack_bins
from stagecraft.engine.batch import Batch
from stagecraft.engine.packs import packed_batch
from stagecraft.engine.trainer import Trainer

Answer = tuple[list[int], list[int]]  # ids of the prompt, ids of the greedy answer


@dataclass(frozen=True)
class Acceptance:
    """What the drafts for greedy answers are worth.

    Attributes:
        agreement: by depth, the share of an answer's tokens that the block foresees with all tokens before them given.
        length: tokens that one step of speculative decoding with all depths goes forward, in the mean: the accepted drafts and one more.
    """

    agreement: list[float]
    length: float


def acceptance(trainer: Trainer, answers: Sequence[Answer], pack_tokens: int) -> Acceptance:
    """Measure the trainer's MTP block on greedy answers of its own backbone; every rank does, and finds the same.

    The tokens before a draft are the answer's own (teacher forcing). So are those that a server has verified, but its block sees, at
    depth 2 and beyond, states of the drafts' first depth for earlier tokens where training has states of the same depth.
    """
    agreed = agreements(trainer, answers, pack_tokens)
    depths = trainer.config.mtp_num_layers
    shares = []
    for depth in range(depths):
        # An answer of n tokens leaves n - 1 - depth that can be foreseen so far ahead.
        seen = torch.cat([each[:len(each) - depth, depth] for each in agreed])
        shares.append(seen.double().mean().item() if len(seen) else 0.0)
    return Acceptance(shares, accepted_length(agreed))


def accepted_length(agreed: Sequence[Tensor]) -> float:
    """Mean tokens of a verification: 1 + the drafts accepted (Leviathan et al. 2023, arXiv 2211.17192, with greedy choice).

    The first token of an answer comes without drafts. A verification accepts drafts up to the first that is not the model's choice and
    adds that choice; the next begins behind it.

    Args:
        agreed: for every answer bool [tokens - 1, depths]: draft `depth` of the verification behind token i is token i + 1 + depth.
    """
    tokens, verifications = 0, 0
    for rows in (each.tolist() for each in agreed):
        at = 0
        while at < len(rows):
            accepted = next((depth for depth, right in enumerate(rows[at]) if not right), len(rows[at]))
            tokens, verifications, at = tokens + accepted + 1, verifications + 1, at + accepted + 1
    return tokens / verifications if verifications else 1.0


def agreements(trainer: Trainer, answers: Sequence[Answer], pack_tokens: int) -> list[Tensor]:
    """For every answer bool [tokens - 1, depths] as in `accepted_length`; False past the answer's end."""
    depths = trainer.config.mtp_num_layers
    lengths = [len(prompt) + len(answer) - 1 for prompt, answer in answers]
    found: dict[int, Tensor] = {}
    for pack in pack_bins(lengths, pack_tokens):
        agreed, start = trainer.mtp_agreement(_row([answers[index] for index in pack])), 0
        for index in pack:
            prompt, answer = answers[index]
            first = start + len(prompt) - 1
            rows = torch.zeros(max(len(answer) - 1, 0), depths, dtype=torch.bool)
            for depth in range(depths):
                count = max(len(answer) - 1 - depth, 0)
                rows[:count, depth] = agreed[depth, first:first + count]
            found[index], start = rows, start + lengths[index]
    return [found[index] for index in range(len(answers))]


def _row(answers: Sequence[Answer]) -> Batch:
    return packed_batch([(prompt + answer, [0] * len(prompt) + [1] * len(answer)) for prompt, answer in answers])
