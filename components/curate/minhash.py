"""Near-duplicates by MinHash and locality-sensitive hashing over word 5-grams, in NumPy.

The scheme and its numbers (14 bands of 8 hashes) are those of datatrove's and FineWeb's deduplication; datatrove 0.10.1's own
signature code fails on xxhash 4, which takes bytes only. Broder 1997 gives the estimator: the share of equal minima is an
unbiased estimate of the Jaccard similarity of two shingle sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash

BANDS, ROWS = 14, 8
SHINGLE = 5
_WORD = re.compile(r"\w+")
_CHUNK = 8192  # shingles hashed at a time: bounds memory to 8192 x 112 x 8 bytes


def shingles(text: str, known: dict[str, int]) -> np.ndarray:
    """Distinct 64-bit hashes of the text's word 5-grams (uint64, sorted); `known` caches word hashes between calls."""
    words = _WORD.findall(text.lower())
    for word in set(words) - known.keys():
        known[word] = xxhash.xxh64_intdigest(word.encode())
    hashes = np.fromiter((known[word] for word in words), np.uint64, len(words))
    width = min(SHINGLE, len(hashes))
    combined = np.zeros(len(hashes) - width + 1, np.uint64)
    for offset in range(width):
        combined = _mix(combined + hashes[offset:offset + len(combined)])
    return np.unique(combined)


def signature(grams: np.ndarray, seed: int = 1) -> np.ndarray:
    """MinHash signature of a shingle set: BANDS * ROWS uint64 minima; an empty set has the largest value everywhere."""
    random = np.random.default_rng(seed)
    factors = random.integers(0, 2**63, BANDS * ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    offsets = random.integers(0, 2**64 - 1, BANDS * ROWS, dtype=np.uint64)
    minima = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(grams), _CHUNK):
        hashed = grams[start:start + _CHUNK, None] * factors + offsets
        np.minimum(minima, hashed.min(axis=0), out=minima)
    return minima


def near_duplicates(texts: Sequence[str], similarity: float) -> dict[int, tuple[int, float]]:
    """Find texts that nearly equal an earlier one.

    Args:
        texts: in order of precedence: of a pair the earlier stays.
        similarity: smallest estimated Jaccard similarity of the shingle sets, in [0, 1]. Pairs far below the bands'
            threshold (1/14)^(1/8) = 0.72 are rarely looked at.

    Returns:
        index of a text to remove -> (index of the kept text it resembles, estimated similarity).
    """
    known: dict[str, int] = {}
    signatures = np.stack([signature(shingles(text, known)) for text in texts]) if texts else np.empty((0, BANDS * ROWS), np.uint64)
    buckets: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
    removed: dict[int, tuple[int, float]] = {}
    for index, row in enumerate(signatures):
        keys = [band.tobytes() for band in row.reshape(BANDS, ROWS)]
        candidates = sorted({kept for bucket, key in zip(buckets, keys) for kept in bucket.get(key, ())})
        if candidates:
            estimates = (signatures[candidates] == row).mean(axis=1)
            best = int(estimates.argmax())
            if estimates[best] >= similarity:
                removed[index] = (candidates[best], float(estimates[best]))
                continue
        for bucket, key in zip(buckets, keys):
            bucket.setdefault(key, []).append(index)
    return removed


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: makes the order of the words matter and the bits independent."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
