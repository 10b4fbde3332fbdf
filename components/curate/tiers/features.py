"""What the classifier looks at: the words and word pairs of a text's beginning, and a few of its statistics."""

from __future__ import annotations

import numpy as np
from numba import njit

from components.curate.rules.scan import DIGIT, WORD, Scan, mix, scan

CHARACTERS = 4000  # of a text that are looked at
BUCKETS = 1 << 14
STATISTICS = ("mean_word", "words_per_line", "symbol_share", "digit_share", "distinct_share", "blank_lines", "log_words", "long_words",
              "sentence_ends", "lower_case")


def features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(hashed words and pairs, float64 [16384], of unit length; statistics, float64 [10]) of a text."""
    head = text[:CHARACTERS]
    scanned = scan(head)
    return _hashed(scanned.word_hash_lower), _statistics(head, scanned)


@njit(cache=True, nogil=True)
def _hashed(words: np.ndarray) -> np.ndarray:
    """Square roots of the counts, so that a word repeated often does not drown the others; scaled to length 1."""
    counts = np.zeros(BUCKETS)
    for index in range(len(words)):
        counts[words[index] % np.uint64(BUCKETS)] += 1.0
        if index:
            counts[mix(words[index - 1] * np.uint64(3) + words[index]) % np.uint64(BUCKETS)] += 1.0
    roots = np.sqrt(counts)
    norm = np.sqrt(counts.sum())
    return roots / norm if norm else roots


def _statistics(text: str, scanned: Scan) -> np.ndarray:
    lengths = scanned.word_end - scanned.word_start
    words, lines, tokens = max(1, len(lengths)), max(1, len(scanned.line_start)), max(1, len(scanned.token_start))
    return np.array([
        min(20.0, lengths.mean()) if len(lengths) else 0.0,
        min(40.0, words / lines),
        float(((scanned.token_class & WORD) == 0).sum()) / tokens,
        float(((scanned.token_class & DIGIT) != 0).sum()) / tokens,
        len(np.unique(scanned.word_hash_lower)) / words,
        float(scanned.line_blank.sum()) / lines,
        float(np.log(words)),
        float((lengths > 7).sum()) / words,
        min(1.0, sum(text.count(end) for end in (". ", ".\n", "? ", "! ")) / words * 10),
        sum(map(str.islower, text)) / max(1, len(text)),
    ])
