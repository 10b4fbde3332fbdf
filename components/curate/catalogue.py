"""All documents that passed the shards, as columns; deduplicated across shards, and split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from components.curate.dedup.clusters import find_duplicates
from components.curate.shards import store
from components.curate.shards.tally import Tally

_COLUMNS = ("id", "source", "path", "category", "tier", "language", "licence", "bytes", "fingerprint")
_CLUSTERS, _MEMBERS = 10, 5  # shown in the report


class Catalogue:
    """The documents of all shards, in the order of the shards.

    Args:
        shards: directories of the results.
    """

    def __init__(self, shards: Sequence[Path]):
        self.shards = shards
        tables = [store.read_columns(directory, _COLUMNS) for directory in shards]
        self.table = pyarrow.concat_tables(tables)
        self.starts = np.cumsum([0, *(len(table) for table in tables)])
        self.kept = np.ones(len(self.table), bool)

    def __len__(self) -> int:
        return int(self.kept.sum())

    def column(self, name: str) -> np.ndarray:
        """A column over all documents, kept or not."""
        return self.table[name].to_numpy()

    def name(self, index: int) -> str:
        """`source/path` of a document."""
        return f"{self.table['source'][index]}/{self.table['path'][index]}"

    def deduplicate(self, similarity: float, memory_bytes: int) -> tuple[list[Tally], list[dict[str, Any]]]:
        """Keep one document of every set of equal or nearly equal ones: that with the smallest id.

        Returns:
            the accounts of `exact_duplicates` and `near_duplicates`, and the largest clusters.
        """
        ids = np.array([int(each, 16) for each in self.table["id"].to_pylist()], np.uint64)
        found = find_duplicates(ids, self.column("fingerprint"), [store.signatures(directory) for directory in self.shards],
                                similarity, memory_bytes)
        sizes = self.column("bytes")
        tallies = []
        alive = self.kept.copy()
        for kind, step in ((1, "exact_duplicates"), (2, "near_duplicates")):
            tally = Tally(step, int(alive.sum()), int(sizes[alive].sum()))
            for index in np.flatnonzero(found.kind == kind):
                keeper = self.name(int(found.keeper[index]))
                why = f"same text as {keeper}" if kind == 1 else f"{found.estimate[index]:.2f} similar to {keeper}"
                sample = {"id": str(self.table["id"][index]), "document": self.name(index), "why": why, "text": ""}
                tally.remove(step, int(sizes[index]), sample)
            for sample in tally.samples.get(step, ()):
                sample["text"] = self._text(sample["id"])[:200]
            alive &= found.kind != kind
            tallies.append(tally)
        self.kept = alive
        return tallies, self._clusters(found.keeper)

    def heldout(self, share: float) -> np.ndarray:
        """Mask of the kept documents that are held out: by a hash of the id, so whatever else is in the corpus."""
        limit = int(share * 2**64)
        hashes = (xxhash.xxh64_intdigest(f"heldout/{each}".encode()) for each in self.table["id"].to_pylist())
        return self.kept & np.fromiter((value < limit for value in hashes), bool, len(self.kept))

    def iterate(self, mask: np.ndarray, columns: Sequence[str] = store.SCHEMA.names) -> Iterator[dict[str, Any]]:
        """The documents of a mask with their text, a few hundred in memory at a time."""
        for directory, start, end in zip(self.shards, self.starts, self.starts[1:]):
            if mask[start:end].any():
                for wanted, row in zip(mask[start:end], store.iterate(directory, columns)):
                    if wanted:
                        yield row

    def _text(self, identifier: str) -> str:
        for directory in self.shards:
            found = pyarrow.parquet.read_table(directory / "documents.parquet", columns=["text"], filters=[("id", "=", identifier)])
            if len(found):
                return found["text"][0].as_py()
        raise KeyError(identifier)

    def _clusters(self, keeper: np.ndarray) -> list[dict[str, Any]]:
        counts = np.bincount(keeper, minlength=len(keeper))
        largest = sorted(np.flatnonzero(counts > 1), key=lambda index: (-counts[index], self.name(index)))[:_CLUSTERS]
        return [{"kept": self.name(index), "documents": int(counts[index]),
                 "members": sorted(self.name(member) for member in np.flatnonzero(keeper == index) if member != index)[:_MEMBERS]}
                for index in largest]
