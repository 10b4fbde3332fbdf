"""What the quantizers see: windows of tokens from conversations and text, and as many again that they never see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stagecraft.contract.errors import UserError
from stagecraft.data.chat import encode_demonstration
from stagecraft.data.indexed import read_indexed
from stagecraft.data.tasks.rows import read_rows
from stagecraft.data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from components.quantize.stage import Calibration


def calibration_windows(corpus: Path, params: Calibration, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Draw the windows.

    Returns:
        (calibration, held out): int64 [samples, length] and [heldout_samples, length]. Of each, the share
        `params.conversations` comes from SFT conversations (no conversation in both), the rest from text (training text for
        the calibration, held-out text for the other).

    Raises:
        UserError: too few conversations or too little text, or tokens the model does not know.
    """
    rng = np.random.default_rng(params.seed)
    counts = [(round(n * params.conversations), n - round(n * params.conversations)) for n in (params.samples, params.heldout_samples)]
    spoken = _conversations(corpus, rng) if params.conversations else iter(())
    parts = []
    for (talk, text), split in zip(counts, ("train", "heldout")):
        rows = [_cut(spoken, talk, params.length, corpus / "tasks" / "sft.jsonl")] if talk else []
        if text:
            documents = read_indexed(corpus / "tokens" / split)
            shuffled = (documents[index] for index in rng.permutation(len(documents)))
            rows.append(_cut(shuffled, text, params.length, corpus / "tokens" / f"{split}.bin"))
        parts.append(torch.from_numpy(np.concatenate(rows)))
    largest = int(max(part.max() for part in parts))
    if largest >= vocab_size:
        raise UserError(f"token {largest} where the model knows {vocab_size}", where=str(corpus),
                        mend="use the corpus that the checkpoint was trained on")
    return parts[0], parts[1]


def _conversations(corpus: Path, rng: np.random.Generator) -> Iterator[np.ndarray]:
    rows = read_rows(corpus / "tasks" / "sft.jsonl")
    tokenizer = load_tokenizer(corpus / "tokenizer")
    return (np.asarray(encode_demonstration(tokenizer, rows[index])[0]) for index in rng.permutation(len(rows)))


def _cut(documents: Iterable[np.ndarray], rows: int, length: int, where: Path) -> np.ndarray:
    """Documents end to end, cut into rows; the rest of the last document is dropped."""
    taken, size = [], 0
    for document in documents:
        taken.append(document)
        size += len(document)
        if size >= rows * length:
            return np.concatenate(taken)[:rows * length].reshape(rows, length).astype(np.int64)
    raise UserError(f"{size} tokens where calibration wants {rows * length}", where=str(where),
                    mend="lower quantize.calibration.samples or length, or curate more text")
