"""Fingerprints of a document: a 64-bit digest for equal texts, a MinHash signature for nearly equal ones.

The scheme and its numbers (word 5-grams, 14 bands of 8 rows) are those of datatrove's and FineWeb's deduplication
(arXiv 2406.17557, section 3.4). Broder 1997 gives the estimator: the share of equal minima is an unbiased estimate of the
Jaccard similarity of two sets of 5-grams.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numba import njit

from stagecraft.data.scan import mix

BANDS, ROWS = 14, 8
WIDTH = BANDS * ROWS
SHINGLE = 5  # words
EMPTY = np.uint32(0xFFFFFFFF)  # everywhere in the signature of a text without words

_random = np.random.default_rng(1)
_FACTORS = _random.integers(0, 2**63, WIDTH, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _random.integers(0, 2**63, WIDTH, dtype=np.uint64) * np.uint64(2)


def text_digest(text: str) -> int:
    """64-bit xxh3 of the text without the white space around it."""
    return xxhash.xxh3_64_intdigest(text.strip().encode())


def signature(words: np.ndarray) -> np.ndarray:
    """MinHash signature, uint32 [112], of the word 5-grams; a text of fewer words is one shingle.

    Args:
        words: uint64 [words], well mixed hashes of the words.
    """
    minima = np.full(WIDTH, EMPTY, np.uint32)
    if len(words):
        _minimise(shingles(words), _FACTORS, _OFFSETS, minima)
    return minima


@njit(cache=True, nogil=True)
def shingles(words: np.ndarray) -> np.ndarray:
    """uint64 hashes of the word 5-grams, in order, repeats included."""
    width = min(SHINGLE, len(words))
    combined = np.empty(len(words) - width + 1, np.uint64)
    for start in range(len(combined)):
        value = np.uint64(0)
        for word in words[start:start + width]:
            value = mix(value + word)
        combined[start] = value
    return combined


@njit(cache=True, nogil=True)
def _minimise(grams: np.ndarray, factors: np.ndarray, offsets: np.ndarray, minima: np.ndarray) -> None:
    """Multiply-shift hashing (Dietzfelbinger et al. 1997): the upper 32 bits of factor x gram + offset."""
    for gram in grams:
        for row in range(len(minima)):
            minima[row] = min(minima[row], np.uint32((gram * factors[row] + offsets[row]) >> np.uint64(32)))
