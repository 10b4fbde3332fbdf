"""Finds passages that occur more than once among any number of documents, in bounded memory, and which occurrences are cut.

Exact substring deduplication (Lee et al. 2021, arXiv 2107.06499, section 4.1), by hashes of runs of tokens instead of a suffix array. A
token is one of `stagecraft.data.scan`: a word or a run of one symbol, as it is written; white space between tokens does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xxhash
from numba import njit

from stagecraft.data.normalise import normalise
from stagecraft.data.scan import BASE, Scan, mix, scan

Span = tuple[int, int]  # first and one past the last token
Documents = Callable[[], Iterable[tuple[int, str]]]
_ENTRY_BYTES = 64  # of memory per run of tokens while a part is sorted
_TOKEN_BYTES = 3   # of text, at least, on average: how many runs there may be
_ENTRY = np.dtype([("key", np.uint64), ("rank", np.uint32), ("place", np.uint32)])


@dataclass(frozen=True)
class Cut:
    """What is cut out of one document.

    Args:
        spans: disjoint, in order.
        keeper: index of the document that keeps the first of the passages.
    """

    spans: list[Span]
    keeper: int


@dataclass(frozen=True)
class _Passage:
    """`tokens` tokens from `place` of the document of rank `rank` are those from `first_place` of the document of rank `first`."""

    rank: int
    place: int
    first: int
    first_place: int
    tokens: int


def find_repeated(documents: Documents, ranks: np.ndarray, size: int, width: int, memory_bytes: int, scratch: Path) -> dict[int, Cut]:
    """Of every run of `width` tokens that occurs more than once, the first occurrence stays and the others are cut.

    First is what stands in the document of lowest rank, and there the earliest. Tokens that belong to the first occurrence of a repeated
    run are never cut, so every such run is left whole once; two passages that overlap in a document may leave up to `width` - 1 tokens
    of each other. The verdict depends on neither the order of the documents nor `memory_bytes`.

    Args:
        documents: gives (index, text) of every document, in any order, twice.
        ranks: int64 [N], a permutation: rank of the document of an index.
        size: bytes of all texts, or more.
        width: tokens; at least 1.
        memory_bytes: what is sorted at a time, besides some 60 bytes per passage found.
        scratch: directory for 16 bytes per token, removed at the end.
    """
    index_of = np.empty(len(ranks), np.int64)
    index_of[ranks] = np.arange(len(ranks))
    parts = max(1, -(-(size // _TOKEN_BYTES) * _ENTRY_BYTES // memory_bytes))
    with TemporaryDirectory(dir=scratch) as directory:
        paths = [Path(directory) / f"{part}.bin" for part in range(parts)]
        _spread(documents, ranks, width, paths, memory_bytes)
        found = [_repeats(np.fromfile(path, _ENTRY)) for path in paths]
    passages = _passages(np.concatenate(found, axis=1), width)
    return _resolve(documents, index_of, passages)


def cut(text: str, spans: Iterable[Span]) -> str:
    """The text without the tokens of the spans, and without lines that held nothing else; what stood apart stays apart."""
    scanned = scan(text)
    kept, joints, at = [], [], 0
    for first, end in spans:
        start, stop = int(scanned.token_start[first]), int(scanned.token_end[end - 1])
        kept.append(text[at:start])
        joints.append("\n" if "\n" in text[start:stop] else " ")
        at = stop
    whole = kept[0] if kept else ""
    for joint, right in zip(joints, [*kept[1:], text[at:]]):
        left, right = whole.rstrip(" \t"), right.lstrip(" \t")
        opens, closes = not left or left.endswith("\n"), not right or right.startswith("\n")
        if opens and closes:
            whole = left + right[1:]
        elif opens:
            whole += right  # with its indentation
        else:
            whole = left + ("" if closes else joint) + right
    return normalise(whole if joints else text)


def passage(text: str, span: Span) -> str:
    """The text of a span."""
    scanned = scan(text)
    return text[scanned.token_start[span[0]]:scanned.token_end[span[1] - 1]]


def _spread(documents: Documents, ranks: np.ndarray, width: int, paths: list[Path], memory_bytes: int) -> None:
    """Write the runs of all documents, each into the part that its hash belongs to. One part is open at a time: a large corpus has more of
    them than a process may have files."""
    for path in paths:
        path.touch()
    held: list[np.ndarray] = []
    size = 0
    for index, text in documents():
        keys = _runs(scan(text).token_polynomial, width)
        entries = np.empty(len(keys), _ENTRY)
        entries["key"], entries["rank"], entries["place"] = keys, ranks[index], np.arange(len(keys))
        held.append(entries)
        size += len(entries)
        if size * _ENTRY_BYTES >= memory_bytes:
            _append(held, paths)
            held, size = [], 0
    if held:
        _append(held, paths)


def _append(held: list[np.ndarray], paths: list[Path]) -> None:
    entries = np.concatenate(held)
    part = entries["key"] % np.uint64(len(paths))
    order = np.argsort(part, kind="stable")
    starts = np.searchsorted(part, np.arange(len(paths), dtype=np.uint64), sorter=order)
    for path, chosen in zip(paths, np.split(order, starts[1:])):
        if len(chosen):
            with path.open("ab") as stream:
                stream.write(entries[chosen].tobytes())


@njit(cache=True, nogil=True)
def _runs(tokens: np.ndarray, width: int) -> np.ndarray:
    """uint64 hashes of all runs of `width` tokens, rolling (Karp and Rabin 1987); none if there are fewer."""
    hashes = np.empty(max(len(tokens) - width + 1, 0), np.uint64)
    highest = np.uint64(1)
    for _ in range(width):
        highest *= BASE
    value = np.uint64(0)
    for place in range(len(tokens)):
        value = value * BASE + mix(tokens[place])
        if place >= width:
            value -= highest * mix(tokens[place - width])
        if place >= width - 1:
            hashes[place - width + 1] = mix(value)
    return hashes


def _repeats(entries: np.ndarray) -> np.ndarray:
    """int64 [4, repeats]: rank and place of every occurrence but the first, and those of the first."""
    entries = entries[np.argsort(entries["key"])]
    keys = entries["key"]
    same = keys[1:] == keys[:-1]
    entries = entries[np.append(same, False) | np.insert(same, 0, False)] if len(keys) else entries
    entries = entries[np.lexsort((entries["place"], entries["rank"], entries["key"]))]
    keys = entries["key"]
    later = np.flatnonzero(keys[1:] == keys[:-1]) + 1 if len(keys) else np.empty(0, np.int64)
    first = np.searchsorted(keys, keys[later])
    return np.stack([entries[name][which].astype(np.int64) for which in (later, first) for name in ("rank", "place")])


def _passages(repeats: np.ndarray, width: int) -> list[_Passage]:
    """Join repeats that follow each other in both documents."""
    if not repeats.shape[1]:
        return []
    repeats = repeats[:, np.lexsort(repeats[::-1])]
    step = np.diff(repeats, axis=1)
    breaks = np.flatnonzero((step[0] != 0) | (step[1] != 1) | (step[2] != 0) | (step[3] != 1)) + 1
    starts, ends = np.insert(breaks, 0, 0), np.append(breaks, repeats.shape[1])
    return [_Passage(*map(int, repeats[:, start]), int(end - start) + width - 1) for start, end in zip(starts, ends)]


def _resolve(documents: Documents, index_of: np.ndarray, passages: list[_Passage]) -> dict[int, Cut]:
    """What of the passages is cut; such as only have their hashes in common are left out."""
    sides: dict[int, list[tuple[int, int]]] = {}  # index -> (2 x passage + side, first token)
    for number, passage in enumerate(passages):
        sides.setdefault(int(index_of[passage.rank]), []).append((2 * number, passage.place))
        sides.setdefault(int(index_of[passage.first]), []).append((2 * number + 1, passage.first_place))
    digests: dict[int, bytes] = {}
    for index, text in documents() if passages else ():
        if index in sides:
            scanned = scan(text)
            for number, place in sides[index]:
                digests[number] = _digest(text, scanned, place, passages[number // 2].tokens)
    later: dict[int, list[tuple[Span, int]]] = {}
    first: dict[int, list[Span]] = {}
    for number, passage in enumerate(passages):
        if digests[2 * number] == digests[2 * number + 1]:
            keeper = int(index_of[passage.first])
            later.setdefault(int(index_of[passage.rank]), []).append(((passage.place, passage.place + passage.tokens), keeper))
            first.setdefault(keeper, []).append((passage.first_place, passage.first_place + passage.tokens))
    cuts = {}
    for index, found in sorted(later.items()):
        left = list(_without(_united(span for span, _ in found), _united(first.get(index, ()))))
        if left:
            cuts[index] = Cut(left, next(keeper for (_, end), keeper in sorted(found) if end > left[0][0]))
    return cuts


def _digest(text: str, scanned: Scan, place: int, tokens: int) -> bytes:
    """128 bits of the tokens as they are written."""
    starts, ends = scanned.token_start[place:place + tokens].tolist(), scanned.token_end[place:place + tokens].tolist()
    return xxhash.xxh3_128_digest("\n".join([text[start:end] for start, end in zip(starts, ends)]).encode("utf-8", "surrogatepass"))


def _united(spans: Iterable[Span]) -> list[Span]:
    """Disjoint spans that cover the same tokens, in order."""
    united: list[Span] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = united[-1][0], max(end, united[-1][1])
        else:
            united.append((start, end))
    return united


def _without(spans: list[Span], kept: list[Span]) -> Iterator[Span]:
    """What of the spans is in none of the kept ones; both disjoint and in order."""
    for start, end in spans:
        for kept_start, kept_end in kept:
            if kept_end > start and kept_start < end:
                if kept_start > start:
                    yield start, kept_start
                start = max(start, kept_end)
        if start < end:
            yield start, end
