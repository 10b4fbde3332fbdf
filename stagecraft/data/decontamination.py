"""Keeps evaluation text out of training text: overlap of 13 words in a row (GPT-3, arXiv 2005.14165, appendix C), and equal lines.

Words are compared in lower case and without punctuation; in scripts that put no blanks between words every letter counts as one.
An evaluation text of fewer than 13 words has no such overlap; it matches a document that holds it as a whole line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numba import njit

from stagecraft.data.normalise import normalise
from stagecraft.data.pii import redact
from stagecraft.data.scan import BASE, Scan, lower_case, mix, scan

GRAM = 13  # words
_SHOWN = 200  # characters of a match
# Scripts without blanks between words, first and last code point: Thai and Lao, Myanmar, Khmer, Kana, Han with its repetition marks.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
             (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_LETTER = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _UNSPACED) + "]")


@dataclass(frozen=True)
class Match:
    """A place where a document shares text with an evaluation set.

    Args:
        set: name of the set.
        row: number of its text, counted from 0.
        kind: `13-gram` or `line`.
        text: the words shared, as the document has them; at most 200 characters.
    """

    set: str
    row: int
    kind: str
    text: str


class EvaluationIndex:
    """Hashes of what must not occur.

    Args:
        sets: names.
        grams, lines: sorted uint64 hashes of 13-grams, and of whole short texts.
        gram_rows, line_rows: int64 [n, 2], (set, row) of each hash: the first text that has it.
    """

    def __init__(self, sets: list[str], grams: np.ndarray, gram_rows: np.ndarray, lines: np.ndarray, line_rows: np.ndarray):
        self.sets = sets
        self.grams, self.gram_rows, self.lines, self.line_rows = grams, gram_rows, lines, line_rows

    @classmethod
    def build(cls, sets: Mapping[str, Iterable[str]]) -> EvaluationIndex:
        """Index the texts of evaluation sets, by name, in all their `forms`."""
        grams, lines = [], []
        for number, texts in enumerate(sets.values()):
            for row, form in ((row, form) for row, text in enumerate(texts) for form in forms(text)):
                words = words_of(scan(form)).hashes
                hashes, found = (_windows(words, GRAM), grams) if len(words) >= GRAM else (_windows(words, len(words)), lines)
                found.append((hashes, np.broadcast_to(np.array([number, row]), (len(hashes), 2))))
        return cls(list(sets), *_sorted(grams), *_sorted(lines))

    def matches(self, text: str, scanned: Scan) -> list[Match]:
        """The evaluation texts a document shares something with, each once; `scanned` is the text's scan."""
        of = words_of(scanned)
        words, starts, ends = of.hashes, of.starts, of.ends
        found: dict[tuple[int, int], Match] = {}
        windows = _windows(words, GRAM)
        for place in members(windows, self.grams):
            span = text[starts[place]:ends[place + GRAM - 1]]
            self._note(found, self.gram_rows, self.grams, windows[place], "13-gram", span)
        first = np.searchsorted(starts, scanned.line_start)
        last = np.searchsorted(starts, scanned.line_end)
        fit = np.flatnonzero((last > first) & (last - first < GRAM))
        lines = _spans(words, first[fit], last[fit])
        for place in members(lines, self.lines):
            span = text[scanned.line_start[fit[place]]:scanned.line_end[fit[place]]].strip()
            self._note(found, self.line_rows, self.lines, lines[place], "line", span)
        return list(found.values())

    def shared(self, scanned: Scan) -> np.ndarray:
        """uint64 hashes of those 13-grams of a document that evaluation texts have too."""
        windows = grams(scanned)
        return windows[members(windows, self.grams)]

    def save(self, path: Path) -> None:
        """Write a .npz file; equal indexes give equal bytes."""
        np.savez(path, sets=np.array(self.sets, dtype=np.str_), grams=self.grams, gram_rows=self.gram_rows, lines=self.lines,
                 line_rows=self.line_rows)

    @classmethod
    def load(cls, path: Path) -> EvaluationIndex:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["sets"].tolist(), *(stored[name] for name in ("grams", "gram_rows", "lines", "line_rows")))

    def _note(self, found: dict[tuple[int, int], Match], rows: np.ndarray, keys: np.ndarray, key: np.uint64, kind: str, span: str) -> None:
        number, row = (int(value) for value in rows[np.searchsorted(keys, key)])
        found.setdefault((number, row), Match(self.sets[number], row, kind, " ".join(span.split())[:_SHOWN]))


@dataclass(frozen=True)
class Words:
    """The words of a text as they are compared.

    Args:
        hashes: uint64 [words], of lower case.
        starts, ends: int32 [words], code points.
    """

    hashes: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


def forms(text: str) -> tuple[str, ...]:
    """An evaluation text as it may stand in training text: as it is, normalised, and with its personal data replaced too."""
    plain = normalise(text)
    return tuple(dict.fromkeys((text.strip("\n") + "\n", plain, redact(plain)[0])))


def words_of(scanned: Scan) -> Words:
    """The scan's words, those of scripts without blanks letter by letter."""
    hashes, starts, ends = scanned.word_hash_lower, scanned.word_start, scanned.word_end
    single = _unspaced()[scanned.codes]
    return Words(*_divided(scanned.codes, lower_case(), single, hashes, starts, ends)) if single.any() else Words(hashes, starts, ends)


def count_words(text: str) -> int:
    """How many words a text has, told apart by blanks; letters of scripts without blanks count as one each."""
    return len(_LETTER.sub(r" \g<0> ", text).split())


def grams(scanned: Scan) -> np.ndarray:
    """uint64 hashes of the 13-grams of a text."""
    return _windows(words_of(scanned).hashes, GRAM)


@njit(cache=True, nogil=True)
def members(hashes: np.ndarray, keys: np.ndarray) -> list[int]:
    """Places of those uint64 hashes that are among the sorted keys."""
    found = []
    for place in range(len(hashes)):
        at = np.searchsorted(keys, hashes[place])
        if at < len(keys) and keys[at] == hashes[place]:
            found.append(place)
    return found


@cache
def _unspaced() -> np.ndarray:
    """bool [code points]: of a script without blanks."""
    table = np.zeros(len(lower_case()), np.bool_)
    for first, last in _UNSPACED:
        table[first:last + 1] = True
    return table


@njit(cache=True, nogil=True)
def _divided(codes: np.ndarray, lower: np.ndarray, single: np.ndarray, hashes: np.ndarray, starts: np.ndarray,
             ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes, starts, ends) of the words, every character of `single` a word of its own; the others' hashes are as the scan makes them."""
    size = len(hashes) + 2 * single.sum()
    values, begins, stops = np.empty(size, np.uint64), np.empty(size, np.int32), np.empty(size, np.int32)
    count = 0
    for index in range(len(hashes)):
        begin = starts[index]
        while begin < ends[index]:
            end, value = begin, np.uint64(0)
            while end < ends[index] and (end == begin or not (single[end] or single[begin])):
                value = value * BASE + np.uint64(lower[codes[end]]) + np.uint64(1)
                end += 1
            values[count], begins[count], stops[count] = mix(value), begin, end
            count, begin = count + 1, end
    return values[:count].copy(), begins[:count].copy(), stops[:count].copy()


def _sorted(found: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not found:
        return np.empty(0, np.uint64), np.empty((0, 2), np.int64)
    keys, first = np.unique(np.concatenate([hashes for hashes, _ in found]), return_index=True)
    return keys, np.concatenate([rows for _, rows in found])[first]


@njit(cache=True, nogil=True)
def _windows(words: np.ndarray, width: int) -> np.ndarray:
    """uint64 hashes of all runs of `width` words; none if there are fewer, or `width` is 0."""
    count = len(words) - width + 1 if width > 0 else 0
    starts = np.arange(max(count, 0))
    return _spans(words, starts, starts + width)


@njit(cache=True, nogil=True)
def _spans(words: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """uint64 hashes of the words from `first` to before `last`."""
    hashes = np.empty(len(first), np.uint64)
    for index in range(len(first)):
        value = np.uint64(last[index] - first[index])
        for word in words[first[index]:last[index]]:
            value = mix(value + word)
        hashes[index] = value
    return hashes
