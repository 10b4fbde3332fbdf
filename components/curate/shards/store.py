"""A shard's result on disk: its clean documents, their fingerprints, and the accounts of the steps.

    <key>/documents.parquet   one row per document, in reading order
    <key>/signatures.bin      uint32 [documents, 112], row by row
    <key>/tallies.json        accounts of the steps, broken files, contamination matches

The directory gets its name last, so a result is there whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from datatrove.data import Document

from components.curate.dedup.signature import WIDTH
from components.curate.shards.tally import Tally
from stagecraft.data.rows import RowWriter

SCHEMA = pyarrow.schema([
    ("id", pyarrow.string()), ("source", pyarrow.string()), ("path", pyarrow.string()), ("licence", pyarrow.string()),
    ("digest", pyarrow.string()), ("language", pyarrow.string()), ("language_probability", pyarrow.float32()),
    ("category", pyarrow.string()), ("tier", pyarrow.int8()), ("score", pyarrow.float32()), ("bytes", pyarrow.int64()),
    ("fingerprint", pyarrow.uint64()), ("text", pyarrow.string()),
])
_ROWS = 512  # documents read at a time


class Writer:
    """Takes documents one by one; `close` makes the result final."""

    def __init__(self, directory: Path):
        self._rows = RowWriter(directory / "documents.parquet", SCHEMA)
        self._signatures = (directory / "signatures.bin").open("wb")

    def add(self, document: Document) -> None:
        """Metadata must hold the columns of the schema, and `signature`."""
        self._rows.add({**document.metadata, "id": document.id, "text": document.text})
        self._signatures.write(document.metadata["signature"].tobytes())

    def close(self) -> None:
        """Write what is left."""
        self._rows.close()
        self._signatures.close()


def read_columns(directory: Path, columns: Sequence[str]) -> pyarrow.Table:
    """Columns of all documents of a shard; the text's is left on disk unless asked for."""
    return pyarrow.parquet.read_table(directory / "documents.parquet", columns=list(columns))


def iterate(directory: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The documents of a shard one after the other, a few hundred in memory at a time."""
    with pyarrow.parquet.ParquetFile(directory / "documents.parquet") as table:
        for batch in table.iter_batches(_ROWS, columns=list(columns)):
            yield from batch.to_pylist()


class Signatures:
    """A shard's uint32 [documents, 112] on disk, indexed as an array. The file is open only while rows are read: a mapping of each shard's
    would be more than a process may have, where there are tens of thousands of shards."""

    def __init__(self, directory: Path):
        self._path = directory / "signatures.bin"
        self._size = self._path.stat().st_size // (WIDTH * np.dtype(np.uint32).itemsize)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.memmap(self._path, np.uint32, "r").reshape(-1, WIDTH)[rows]


def read_accounts(directory: Path) -> tuple[list[Tally], dict[str, str], list[dict[str, Any]]]:
    """(accounts of the steps, broken file -> why, contamination matches) of a shard."""
    accounts = json.loads((directory / "tallies.json").read_text())
    return [Tally(**tally) for tally in accounts["steps"]], accounts["broken"], accounts["matches"]
