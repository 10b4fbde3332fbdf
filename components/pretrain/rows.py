"""What pre-training reads: rows of the corpus's blends, of each phase in an order of its own, and the held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from components.pretrain.params import Params
from stagecraft.data.blend import read_blend
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine.batch import Batch
from stagecraft.engine.datasets import batch_of, open_blend
from stagecraft.engine.phases import Phase, read_at
from stagecraft.engine.trainer import Trainer


class TokenFiles:
    """The token files of a corpus.

    Args:
        cache: where the shuffled orders of their rows are kept between attempts.
    """

    def __init__(self, corpus: Path, cache: Path):
        tokenizer = load_tokenizer(corpus / "tokenizer")
        self.corpus, self.cache = corpus, cache
        self._ids = {"eod": tokenizer.convert_tokens_to_ids("</s>"), "vocab_size": len(tokenizer)}

    def open(self, blend: str, *, rows: int, length: int, seed: int) -> Any:
        """A dataset of `rows` rows of `length` tokens of a blend, in an order fixed by `seed`."""
        return open_blend(read_blend(self.corpus, blend), samples=rows, sequence_length=length, seed=seed, cache=self.cache, **self._ids)


class PhaseRows:
    """What every step of a schedule reads."""

    def __init__(self, files: TokenFiles, phases: Sequence[Phase], seed: int):
        self._phases = phases
        self._rows = {phase: files.open(phase.blend, rows=phase.rows, length=phase.length, seed=seed + phase.number) for phase in phases}

    def read(self, step: int, share: Callable[[int], tuple[int, int]] = lambda count: (0, count)) -> list[Batch]:
        """The microbatches of a step.

        Args:
            step: counted from 0.
            share: of so many microbatches, the first that is wanted and how many are.
        """
        phase, at, batch = read_at(step, self._phases)
        first, count = share(batch // phase.micro)
        starts = (at + number * phase.micro for number in range(first, first + count))
        return [batch_of(self._rows[phase], range(start, start + phase.micro)) for start in starts]


class Heldout:
    """The held-out rows, of the usual length, in one order."""

    def __init__(self, files: TokenFiles, params: Params):
        self._count, self._micro = params.heldout_rows, params.micro_batch
        self._rows = files.open("heldout", rows=params.heldout_rows, length=params.sequence_length, seed=params.seed)

    def loss(self, trainer: Trainer, rows: int, beat: Callable[[int], None] = lambda _: None) -> float:
        """Mean next-token loss (nats) over the first `rows` rows, unquantised; the same on every rank.

        The data-parallel ranks share the batches. Experts may lie on all of them, so each computes as many: one too many is not counted.

        Args:
            beat: called before every batch with the steps done.
        """
        rows = min(rows, self._count)
        ranks, rank = parallel_state.get_data_parallel_world_size(), parallel_state.get_data_parallel_rank()
        starts = range(0, rows, self._micro)
        sums = torch.zeros(2, dtype=torch.float64, device=torch.cuda.current_device())
        for turn in range(ceil(len(starts) / ranks)):
            beat(trainer.steps_done)
            start = starts[min(turn * ranks + rank, len(starts) - 1)]
            found = torch.tensor(trainer.loss(batch_of(self._rows, range(start, min(start + self._micro, rows)))), dtype=torch.float64)
            if turn * ranks + rank < len(starts):
                sums += found.to(sums.device)
        dist.all_reduce(sums, group=parallel_state.get_data_parallel_group())
        loss, tokens = sums.tolist()
        return loss / tokens
