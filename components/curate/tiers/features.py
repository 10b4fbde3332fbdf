"""What the quality classifier sees of a text: hashed words and word pairs, and statistics that tell prose from lists, logs and noise."""

# ruff: noqa: ANN001 - the compiled functions take arrays and scalars, not Python objects

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit

from stagecraft.data.scan import BASE, DIGIT, SPACE, WORD, character_classes, lower_case, mix, scan

CHARACTERS = 4000  # of the text's beginning; quality hardly changes within a document, and longer ones would only cost time
BINS = 1 << 15
DENSE = ("word_length", "symbols", "prose_symbols", "digits", "capitals", "stop_words", "words_with_digits", "unique_words",
         "sentence_length", "line_length", "short_lines", "repeated_lines")
_WINDOW = 50       # words; the share of unique words falls with a text's length, so it is taken over windows of one length
_LINE = 80         # characters; longer lines count as this, so that wrapped and unwrapped prose look alike
_SHORT_LINE = 30   # characters
_SENTENCE = 60     # words; what has no sentences counts as this
_STOP = """a about after all also an and any are as at be because been before but by can could do does each even for from had has have he
    her here his how i if in into is it its like made may more most must no not of on one only or other our out over same she should so some
    such than that the their them then there these they this those through to too two under up was we were what when where which while
    who why will with would you your"""
_PROSE_SYMBOLS = np.frombuffer(".,;:!?'\"()-".encode("utf-32-le"), np.uint32)
_ENDS = np.frombuffer(".!?".encode("utf-32-le"), np.uint32)
_PAIR = BASE | np.uint64(1)


@cache
def _stop_words() -> np.ndarray:
    return np.sort(scan(_STOP).word_hash_lower)


def features(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the first 4000 characters, white space around the text aside.

    Returns:
        bins: int64 [n], ascending; hash bins of the words and word pairs that occur.
        values: float64 [n]; 1 + log of their counts, scaled to Euclidean length 1.
        dense: float64 [12]; `DENSE`: shares in [0, 1], lengths in characters, the sentence's as log(1 + words).
    """
    scanned = scan(text.strip()[:CHARACTERS])
    is_word = (scanned.token_class & WORD) != 0
    words = scanned.token_hash_lower[is_word]
    bins, values = _count(words)
    dense = _measure(scanned.codes, character_classes(), lower_case(), words, scanned.token_class[is_word],
                     scanned.token_end[is_word] - scanned.token_start[is_word], scanned.line_start, scanned.line_end, scanned.line_hash,
                     scanned.line_blank, _stop_words())
    return bins, values, dense


@njit(cache=True, nogil=True)
def _count(words):
    counts = np.zeros(BINS, np.int32)
    mask = np.uint64(BINS - 1)
    for index in range(len(words)):
        counts[words[index] & mask] += 1
        if index:
            counts[mix(words[index - 1] * _PAIR + words[index]) & mask] += 1
    bins = np.flatnonzero(counts)
    values = 1 + np.log(counts[bins].astype(np.float64))
    total = 0.0
    for value in values:
        total += value * value
    return bins, values / np.sqrt(max(total, 1.0))


@njit(cache=True, nogil=True)
def _measure(codes, classes, lower, words, word_class, word_length, line_start, line_end, line_hash, line_blank, stop_words):
    visible = digits = capitals = symbols = prose = ends = 0
    for code in codes:
        class_ = classes[code]
        if class_ & SPACE:
            continue
        visible += 1
        digits += (class_ & DIGIT) != 0
        capitals += lower[code] != code
        if not class_ & WORD:
            symbols += 1
            prose += code in _PROSE_SYMBOLS
            ends += code in _ENDS

    stops = numeric = letters = 0
    for index in range(len(words)):
        place = np.searchsorted(stop_words, words[index])
        stops += place < len(stop_words) and stop_words[place] == words[index]
        numeric += (word_class[index] & DIGIT) != 0
        letters += word_length[index]

    lines = short = width = 0
    hashes = np.empty(len(line_start), np.uint64)
    for line in range(len(line_start)):
        if not line_blank[line]:
            length = line_end[line] - line_start[line]
            hashes[lines] = line_hash[line]
            lines += 1
            short += length < _SHORT_LINE
            width += min(length, _LINE)

    count = max(1, len(words))
    return np.array([
        letters / count, symbols / max(1, visible), prose / max(1, symbols), digits / max(1, visible), capitals / max(1, visible),
        stops / count, numeric / count, _unique_share(words), np.log1p(min(_SENTENCE, len(words) / max(1, ends))),
        width / max(1, lines), short / max(1, lines), 1 - _distinct(hashes[:lines]) / max(1, lines),
    ])


@njit(cache=True, nogil=True)
def _unique_share(words):
    """Mean over windows of 50 words; of fewer words, their own."""
    if len(words) < _WINDOW:
        return _distinct(words) / max(1, len(words))
    total = 0.0
    windows = len(words) // _WINDOW
    for window in range(windows):
        total += _distinct(words[window * _WINDOW:(window + 1) * _WINDOW]) / _WINDOW
    return total / windows


@njit(cache=True, nogil=True)
def _distinct(hashes):
    ordered = np.sort(hashes)
    count = min(1, len(ordered))
    for index in range(1, len(ordered)):
        count += ordered[index] != ordered[index - 1]
    return count
