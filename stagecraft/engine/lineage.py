"""Where a token of a training row lies in the corpus, asked of the very dataset that the training reads."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stagecraft.contract.errors import UserError
from stagecraft.data.tokenizer import load_tokenizer
from stagecraft.engine.datasets import open_blend


def locate(corpus: Path, params: Mapping[str, Any], row: int, position: int) -> tuple[Path, int]:
    """(token file without suffix, position in it) of the token at `position` of row `row` of pre-training.

    Args:
        params: of the pretrain stage, as its manifest has them.
        row: counted from 0 over all steps: step x global_batch + place in the batch.
        position: counted from 0; the row's last label is at `sequence_length`.

    Raises:
        UserError: the training had no such row or position.
    """
    rows, length = params["steps"] * params["global_batch"], params["sequence_length"]
    if not 0 <= row < rows or not 0 <= position <= length:
        raise UserError(f"row {row}, position {position}: the training had {rows} rows of {length} tokens", where="lineage",
                        mend="both count from 0")
    tokenizer = load_tokenizer(corpus / "tokenizer")
    with tempfile.TemporaryDirectory() as cache:
        dataset = open_blend(
            corpus, params["blend"], samples=rows, sequence_length=length, seed=params["seed"], cache=Path(cache),
            eod=tokenizer.convert_tokens_to_ids("</s>"), pad=tokenizer.pad_token_id, vocab_size=len(tokenizer))
        if hasattr(dataset, "datasets"):  # a blend of several files
            part = dataset.datasets[dataset.dataset_index[row]]
            row = int(dataset.dataset_sample_index[row])
        else:
            part = dataset
        _, documents, lengths = part._query_document_sample_shuffle_indices(row)
        ends = np.cumsum(lengths)
        index = int(np.searchsorted(ends, position, side="right"))
        within = position - int(ends[index - 1]) if index else position + int(part.sample_index[part.shuffle_index[row]][1])
        before = int(part.dataset.index.sequence_lengths[:int(documents[index])].sum(dtype=np.int64))
    return Path(part.dataset.path_prefix), before + within
