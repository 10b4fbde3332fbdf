"""Token streams for pre-training: megatron-core's GPTDataset and blends over the `.bin/.idx` files of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stagecraft.megatron_cpu  # noqa: F401

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from stagecraft.contract.errors import UserError
from stagecraft.engine.batch import Batch


class _Ids:
    """The two token ids that GPTDataset asks a tokenizer for; documents end with `</s>` already.

    No row is padded, so no token is the padding: GPTDataset keeps the loss mask of the first row that a process reads, with the places of
    its padding, for all others, and what is learned would hang on which row that is.
    """

    pad = -1

    def __init__(self, eod: int, vocab_size: int):
        self.unique_identifiers = {"class": "stagecraft"}
        self.eod, self.vocab_size = eod, vocab_size


def open_blend(files: Sequence[tuple[Path, float]], *, samples: int, sequence_length: int, seed: int, cache: Path, eod: int,
               vocab_size: int) -> Any:
    """A dataset of `samples` rows of `sequence_length` tokens and their successors, in an order fixed by `seed`.

    Args:
        files: token files without suffix, and their weights.
        cache: where the shuffled index is kept between attempts.

    Raises:
        UserError: it cannot be written there, as on a full disk.
    """
    config = GPTDatasetConfig(
        blend=([str(prefix) for prefix, _ in files], [weight for _, weight in files]), split="1,0,0", random_seed=seed,
        sequence_length=sequence_length, tokenizer=_Ids(eod, vocab_size), path_to_cache=str(cache), reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
        # Of each file the blend takes its share to within a row or two, which Megatron's half per cent of a few rows does not hold.
        mid_level_dataset_surplus=max(0.005, (len(files) + 2) / samples))
    try:
        return BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()[0]
    except Exception as error:  # Megatron's own, which names neither file nor reason
        if isinstance(error.__cause__, OSError):
            raise UserError(f"the order of the rows cannot be written: {error.__cause__}", where=str(cache),
                            mend="make room and start again") from error
        raise


def batch_of(dataset: Any, indices: range) -> Batch:
    """The rows `indices` of a dataset as one microbatch."""
    rows = [dataset[index] for index in indices]
    device = torch.cuda.current_device()
    tokens, labels, mask = (torch.from_numpy(np.stack([np.asarray(row[key]) for row in rows])).to(device)
                            for key in ("tokens", "labels", "loss_mask"))
    return Batch(tokens.long(), labels.long(), mask.float())
