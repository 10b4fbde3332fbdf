"""What the quantizers see: windows of tokens from conversations and text, and as many again that they never see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stagecraft.contract.errors import UserError
from stagecraft.data.blend import read_blend
from stagecraft.data.chat import encode_demonstration
from stagecraft.data.indexed import read_indexed
from stagecraft.data.tasks.rows import read_rows
from stagecraft.data.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from components.quantize.params import Calibration


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
    for (talk, text), phase in zip(counts, ("phase1", "heldout")):
        rows = [cut(spoken, talk, params.length, corpus / "tasks" / "sft.jsonl")] if talk else []
        if text:
            rows.append(cut(_shuffled(read_blend(corpus, phase), rng), text, params.length, corpus / "blend.json"))
        parts.append(torch.from_numpy(np.concatenate(rows)))
    largest = int(max(part.max() for part in parts))
    if largest >= vocab_size:
        raise UserError(f"token {largest} where the model knows {vocab_size}", where=str(corpus),
                        mend="use the corpus that the checkpoint was trained on")
    return parts[0], parts[1]


def unseen_conversations(corpus: Path, params: Calibration) -> Iterator[np.ndarray]:
    """The conversations that `calibration_windows` leaves over, in random order."""
    spoken = _conversations(corpus, np.random.default_rng(params.seed))
    for count in (params.samples, params.heldout_samples):
        if talk := round(count * params.conversations):
            cut(spoken, talk, params.length, corpus / "tasks" / "sft.jsonl")
    return spoken


def _conversations(corpus: Path, rng: np.random.Generator) -> Iterator[np.ndarray]:
    rows = read_rows(corpus / "tasks" / "sft.jsonl")
    tokenizer = load_tokenizer(corpus / "tokenizer")
    return (np.asarray(encode_demonstration(tokenizer, rows[index])[0]) for index in rng.permutation(len(rows)))


def _shuffled(files: list[tuple[Path, float]], rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The documents of a blend in random order, those of weighty files earlier (Efraimidis and Spirakis 2006)."""
    documents, weights = [], []
    for prefix, weight in files:
        members = read_indexed(prefix)
        documents += members
        weights += [weight / len(members)] * len(members)
    order = np.argsort(rng.exponential(size=len(documents)) / np.asarray(weights), kind="stable")
    return (documents[index] for index in order)


def cut(documents: Iterable[np.ndarray], rows: int, length: int, where: Path,
        mend: str = "lower quantize.calibration.samples or length, or curate more text") -> np.ndarray:
    """Documents end to end, cut into int64 [rows, length]; the rest of the last document is dropped.

    Raises:
        UserError: the documents end before.
    """
    taken, size = [], 0
    for document in documents:
        taken.append(document)
        size += len(document)
        if size >= rows * length:
            return np.concatenate(taken)[:rows * length].reshape(rows, length).astype(np.int64)
    raise UserError(f"{size} tokens where {rows * length} are wanted", where=str(where), mend=mend)
