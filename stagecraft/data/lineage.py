"""Which document a token comes from: the record that lies beside every token file of the corpus, and the duplicates that were removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from stagecraft.contract.errors import UserError

# `digest` is the SHA-256 of the text as it was read, before any step changed it; `cut_bytes` what was cut of it as repeated.
SCHEMA = pyarrow.schema([
    ("id", pyarrow.string()), ("source", pyarrow.string()), ("path", pyarrow.string()), ("licence", pyarrow.string()),
    ("digest", pyarrow.string()), ("language", pyarrow.string()), ("language_probability", pyarrow.float32()),
    ("category", pyarrow.string()), ("tier", pyarrow.int8()), ("score", pyarrow.float32()), ("cut_bytes", pyarrow.int64()),
    ("tokens", pyarrow.int64()),
])
# A document that was removed, and the one that stands for it; `similarity` is estimated, 1 for equal texts.
DUPLICATES = pyarrow.schema([
    ("id", pyarrow.string()), ("document", pyarrow.string()), ("kept", pyarrow.string()), ("similarity", pyarrow.float32()),
])
DUPLICATES_FILE = "duplicates.parquet"


def record_path(prefix: Path) -> Path:
    """The record of `prefix.bin`: one row per document, in the order of the tokens."""
    return prefix.with_name(f"{prefix.name}.documents.parquet")


def document_at(prefix: Path, position: int) -> tuple[dict[str, Any], int]:
    """(record of the document, position within it) of the token at `position` of a token file, counted from 0.

    Raises:
        UserError: no record, or the position is not in the file.
    """
    table = _read(prefix)
    ends = np.cumsum(table["tokens"].to_numpy())
    if not 0 <= position < (ends[-1] if len(ends) else 0):
        raise UserError(f"position {position} is not in the file, which has {ends[-1] if len(ends) else 0} tokens", where=str(prefix),
                        mend="positions count from 0")
    index = int(np.searchsorted(ends, position, side="right"))
    record = table.slice(index, 1).to_pylist()[0]
    return record, position - int(ends[index]) + record["tokens"]


def duplicates_of(corpus: Path, identifier: str) -> list[dict[str, Any]]:
    """The removed documents that the document `identifier` stands for: id, document, similarity.

    Raises:
        UserError: the corpus has no record of its duplicates.
    """
    path = corpus / DUPLICATES_FILE
    if not path.is_file():
        raise UserError("no record of its duplicates", where=str(path), mend="name a corpus artifact")
    found = pyarrow.parquet.read_table(path, columns=["id", "document", "similarity"], filters=[("kept", "=", identifier)])
    return found.to_pylist()


def _read(prefix: Path) -> pyarrow.Table:
    path = record_path(prefix)
    if not path.is_file():
        raise UserError("no record of its documents", where=str(path), mend="name a token file of the corpus, without suffix")
    return pyarrow.parquet.read_table(path)
