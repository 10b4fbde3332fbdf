"""All documents that passed the shards, as columns; deduplicated across shards, and split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import xxhash

from components.curate.dedup.clusters import KEPT, find_duplicates
from components.curate.dedup.overlap import find_overlaps
from components.curate.dedup.substrings import Cut, cut, find_repeated, passage
from components.curate.shards import store
from components.curate.shards.tally import Tally
from stagecraft.data.lineage import DUPLICATES
from stagecraft.data.normalise import normalise

_COLUMNS = ("id", "source", "path", "category", "tier", "language", "licence", "bytes", "fingerprint")
_CLUSTERS, _MEMBERS, _SHOWN = 10, 5, 200  # shown in the report: clusters, members of each, characters of a removed text


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
        self.cuts: dict[int, Cut] = {}
        self.stretches: dict[int, tuple[int, int]] = {}  # characters that are left after the cuts
        self._cut_bytes = np.zeros(len(self.table), np.int64)

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
        ids = self._ids()
        found = find_duplicates(ids, self.column("fingerprint"), [store.Signatures(directory) for directory in self.shards],
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
                sample["text"] = self._text(sample["id"])[:_SHOWN]
            alive &= found.kind != kind
            tallies.append(tally)
        self.kept, self._found = alive, found
        return tallies, self._clusters(found.keeper)

    def write_duplicates(self, path: Path) -> None:
        """Write the documents that `deduplicate` removed, and which stands for each (`stagecraft.data.lineage.DUPLICATES`)."""
        gone = np.flatnonzero(self._found.kind != KEPT)
        ids = self.table["id"]
        pyarrow.parquet.write_table(pyarrow.table([
            ids.take(gone), [self.name(index) for index in gone], ids.take(self._found.keeper[gone]), self._found.estimate[gone],
        ], schema=DUPLICATES), path)

    def cut_repeated(self, width: int, min_characters: int, memory_bytes: int, scratch: Path) -> Tally:
        """Cut passages of at least `width` tokens that occur more than once out of all kept documents but that of the smallest id.

        A document that is shorter than `min_characters` then is removed, with the passages that it alone kept.

        Args:
            memory_bytes, scratch: as `find_repeated` takes them.

        Returns:
            the account of `repeated_substrings`: bytes cut, and documents removed.
        """
        sizes = self.column("bytes").copy()
        ranks = np.argsort(np.argsort(self._ids(), kind="stable"), kind="stable")
        tally = Tally("repeated_substrings", int(self.kept.sum()), int(sizes[self.kept].sum()))
        kept = self.kept.copy()
        cuts = find_repeated(lambda: self._texts(kept), ranks, tally.bytes, width, memory_bytes, scratch)
        before = sizes.copy()
        for index, text in self._texts(kept):
            if index not in cuts:
                continue
            left = cut(text, cuts[index].spans)
            sizes[index] = len(left.encode())
            lost = int(before[index] - sizes[index])
            why = f"passages: {len(cuts[index].spans)}, {lost} bytes; the first is kept in {self.name(cuts[index].keeper)}"
            sample = {"id": str(self.table["id"][index]), "document": self.name(index), "why": why,
                      "text": passage(text, cuts[index].spans[0])[:_SHOWN]}
            if len(left) < min_characters:
                self.kept[index] = False
                tally.remove("too_short_without_repeats", int(before[index]), sample)
            else:
                tally.cut("repeated_substrings", lost, sample)
                tally.count("documents cut")
                tally.count("passages", len(cuts[index].spans))
        self.cuts = cuts
        self._resize(sizes)
        return tally

    def heldout(self, share: float) -> np.ndarray:
        """Mask of the kept documents that are held out: by a hash of the id, so whatever else is in the corpus."""
        limit = int(share * 2**64)
        hashes = (xxhash.xxh64_intdigest(f"heldout/{each}".encode()) for each in self.table["id"].to_pylist())
        return self.kept & np.fromiter((value < limit for value in hashes), bool, len(self.kept))

    def keep_apart(self, heldout: np.ndarray, min_characters: int, memory_bytes: int, threads: int) -> tuple[Tally, list[dict[str, Any]]]:
        """Cut held-out documents down to what no training document has: to their longest stretch of lines that share no 13 words in a row.

        A document that is shorter than `min_characters` then is removed. Training documents stay as they are.

        Args:
            heldout: mask, of kept documents; all other kept documents are trained on.
            memory_bytes, threads: as `find_overlaps` takes them.

        Returns:
            the account of `heldout_overlap`, and for each document that was cut or removed what it shared, with whom.
        """
        sizes = self.column("bytes").copy()
        tally = Tally("heldout_overlap", int(self.kept.sum()), int(sizes[self.kept].sum()))
        order = np.argsort(self._ids(), kind="stable")
        ranks = np.argsort(order, kind="stable")
        train = self.kept & ~heldout
        overlaps = find_overlaps(self._texts(heldout), lambda: ((ranks[index], text) for index, text in self._texts(train)), memory_bytes,
                                 threads)
        shared = []
        for index, text in self._texts(heldout & np.isin(np.arange(len(heldout)), list(overlaps))):
            overlap = overlaps[index]
            left = normalise(text[overlap.start:overlap.end])
            lost = int(sizes[index]) - len(left.encode())
            other = self.name(int(order[overlap.other]))
            match = {"id": str(self.table["id"][index]), "document": self.name(index), "lines": overlap.lines, "other": other,
                     "text": " ".join(overlap.passage.split())[:_SHOWN], "left_bytes": len(left.encode())}
            shared.append(match)
            sample = {"id": match["id"], "document": match["document"], "why": f"{overlap.lines} lines share words with {other}",
                      "text": match["text"]}
            if len(left) < min_characters:
                self.kept[index] = False
                tally.remove("heldout_too_short_apart", int(sizes[index]), sample)
            else:
                tally.cut("heldout_overlap", lost, sample)
                tally.count("documents cut")
                self.stretches[index] = overlap.start, overlap.end
                sizes[index] -= lost
        self._resize(sizes)
        return tally, sorted(shared, key=lambda match: match["id"])

    def iterate(self, mask: np.ndarray, columns: Sequence[str] = store.SCHEMA.names) -> Iterator[dict[str, Any]]:
        """The documents of a mask as they are left, with `cut_bytes`; a few hundred in memory at a time."""
        for index, row in self._rows(mask, columns):
            yield {**row, "text": self._left(index, row["text"]), "cut_bytes": int(self._cut_bytes[index])}

    def _ids(self) -> np.ndarray:
        return np.array([int(each, 16) for each in self.table["id"].to_pylist()], np.uint64)

    def _texts(self, mask: np.ndarray) -> Iterator[tuple[int, str]]:
        return ((index, self._left(index, row["text"])) for index, row in self._rows(mask, ["text"]))

    def _left(self, index: int, text: str) -> str:
        """A document's text after the cuts."""
        if index in self.cuts:
            text = cut(text, self.cuts[index].spans)
        if index in self.stretches:
            start, end = self.stretches[index]
            text = normalise(text[start:end])
        return text

    def _resize(self, sizes: np.ndarray) -> None:
        self._cut_bytes += self.column("bytes") - sizes
        self.table = self.table.set_column(self.table.column_names.index("bytes"), "bytes", pyarrow.array(sizes))

    def _rows(self, mask: np.ndarray, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(index, row) of the documents of a mask as their shards have them."""
        for directory, start, end in zip(self.shards, self.starts.tolist(), self.starts[1:].tolist()):
            if mask[start:end].any():
                for index, row in enumerate(store.iterate(directory, columns), start):
                    if mask[index]:
                        yield index, row

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
