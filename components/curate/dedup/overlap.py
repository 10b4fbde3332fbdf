"""Finds what some documents share with many others, 13 words in a row, and of each the lines that are left: in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np

from stagecraft.data.decontamination import GRAM, grams, members, words_of
from stagecraft.data.scan import Scan, scan

Documents = Iterable[tuple[int, str]]
_ENTRY_BYTES = 64  # of memory per word of the documents looked for, while their index is made
_BATCH = 128       # documents of the others at a time
_NONE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Overlap:
    """What one document shares with the others.

    Args:
        lines: of its text that have a word of a shared run.
        start, end: characters of the longest stretch of whole lines without one; equal if every line has one.
        other: the smallest number of another document that shares something.
        passage: its first run of 13 words that this document has too, as this document writes it.
    """

    lines: int
    start: int
    end: int
    other: int
    passage: str


def find_overlaps(documents: Documents, others: Callable[[], Documents], memory_bytes: int, threads: int) -> dict[int, Overlap]:
    """The documents that share 13 words in a row with any of the others; the verdict depends on neither the order nor the memory.

    Args:
        documents: (index, text) of those to be kept apart.
        others: gives (number, text) of all others, once for as many documents as `memory_bytes` hold at a time.
        threads: scan the others.
    """
    found: dict[int, Overlap] = {}
    for part in _parts(documents, memory_bytes):
        scans = {index: scan(text) for index, text in part.items()}
        keys = np.unique(np.concatenate([grams(scanned) for scanned in scans.values()]))
        first = np.full(len(keys), _NONE)
        for other, hashes in _shared(keys, others(), threads):
            places = np.searchsorted(keys, hashes)
            first[places] = np.minimum(first[places], other)
        for index, scanned in scans.items():
            sources = first[np.searchsorted(keys, grams(scanned))]
            if (sources != _NONE).any():
                found[index] = _overlap(part[index], scanned, sources)
    return found


def _parts(documents: Documents, memory_bytes: int) -> Iterator[dict[int, str]]:
    """As many documents as the memory holds, at least one; a word is at least a character, and what parts it from the next
    where its script has blanks."""
    part: dict[int, str] = {}
    words = 0
    for index, text in documents:
        more = len(text) // 2 if text.isascii() else len(text)
        if part and (words + more) * _ENTRY_BYTES > memory_bytes:
            yield part
            part, words = {}, 0
        part[index] = text
        words += more
    if part:
        yield part


def _shared(keys: np.ndarray, others: Documents, threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number, those of the keys that its text has) of the others that have any."""
    def shared(text: str) -> np.ndarray:
        found = grams(scan(text))
        return found[members(found, keys)]

    others = iter(others)
    with ThreadPoolExecutor(threads) as pool:
        while batch := list(islice(others, _BATCH)):
            for (other, _), found in zip(batch, pool.map(shared, [text for _, text in batch])):
                if len(found):
                    yield other, found


def _overlap(text: str, scanned: Scan, sources: np.ndarray) -> Overlap:
    """Args: sources: int64 [13-grams], the document that each occurs in, or _NONE."""
    words = words_of(scanned)
    steps = np.zeros(len(words.starts) + 1, np.int64)  # +1 where a shared run begins, -1 after its end
    runs = np.flatnonzero(sources != _NONE)
    np.add.at(steps, runs, 1)
    np.add.at(steps, runs + GRAM, -1)
    places = words.starts[np.cumsum(steps[:-1]) > 0]
    shared = np.unique(np.searchsorted(scanned.line_start, places, "right") - 1)
    edges = [-1, *shared.tolist(), len(scanned.line_start)]
    stretches = [(int(scanned.line_start[before + 1]), int(scanned.line_end[after - 1]))
                 for before, after in pairwise(edges) if after - before > 1]
    start, end = max(stretches, key=lambda each: (each[1] - each[0], -each[0]), default=(0, 0))
    other = int(sources[runs].min())
    place = int(runs[sources[runs] == other][0])
    passage = text[words.starts[place]:words.ends[place + GRAM - 1]]
    return Overlap(len(shared), start, end, other, passage)
