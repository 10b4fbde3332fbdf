"""Where a token of a training row lies in the corpus, asked of the very dataset that the training reads."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stagecraft.engine.datasets import open_blend


def locate(files: Sequence[tuple[Path, float]], row: int, position: int, **dataset: Any) -> tuple[Path, int]:
    """(token file without suffix, position in it) of the token at `position` of row `row`.

    Args:
        files: of the blend, with their weights.
        row: counted from 0 within the phase of the training that read these files.
        position: counted from 0; the row's last label is at `sequence_length`.
        dataset: the arguments of `open_blend` with which the training read, less `cache`.

    Raises:
        IndexError: the training had no such row or position.
    """
    rows, length = dataset["samples"], dataset["sequence_length"]
    if not 0 <= row < rows or not 0 <= position <= length:
        raise IndexError(f"row {row}, position {position}: the training had {rows} rows of {length} tokens")
    with tempfile.TemporaryDirectory() as cache:
        blend = open_blend(files, cache=Path(cache), **dataset)
        if hasattr(blend, "datasets"):  # several files
            part = blend.datasets[blend.dataset_index[row]]
            row = int(blend.dataset_sample_index[row])
        else:
            part = blend
        _, documents, lengths = part._query_document_sample_shuffle_indices(row)
        ends = np.cumsum(lengths)
        index = int(np.searchsorted(ends, position, side="right"))
        within = position - int(ends[index - 1]) if index else position + int(part.sample_index[part.shuffle_index[row]][1])
        before = int(part.dataset.index.sequence_lengths[:int(documents[index])].sum(dtype=np.int64))
    return Path(part.dataset.path_prefix), before + within
