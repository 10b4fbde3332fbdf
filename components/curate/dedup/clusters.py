"""Finds the sets of equal and nearly equal documents among any number, in bounded memory, and whom each set keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

from components.curate.dedup.signature import BANDS, EMPTY, ROWS, WIDTH

KEPT, EXACT, NEAR = 0, 1, 2
_CHUNK = 65536       # signatures in memory at a time: 29 MB
_ENTRY_BYTES = 48    # of memory per entry of a band's index while it is sorted


@dataclass(frozen=True)
class Duplicates:
    """The verdict on N documents.

    Args:
        keeper: int64 [N], index of the document that stays for each; its own where it stays.
        kind: uint8 [N], KEPT, EXACT (same text as the keeper) or NEAR.
        estimate: float32 [N], estimated Jaccard similarity to the keeper; 1 for equal texts.
    """

    keeper: np.ndarray
    kind: np.ndarray
    estimate: np.ndarray


def find_duplicates(ids: np.ndarray, digests: np.ndarray, signatures: Sequence[np.ndarray], similarity: float,
                    memory_bytes: int) -> Duplicates:
    """Join documents whose texts are equal, or whose signatures agree in a band and in at least `similarity` of all rows.

    Joined sets are closed under chains; of each the document with the smallest id stays. The verdict depends on neither
    the order of the documents, nor how they are spread over shards, nor `memory_bytes`. Documents without words are
    never near-duplicates.

    Args:
        ids: uint64 [N], distinct.
        digests: uint64 [N] of the texts.
        signatures: per shard, uint32 [n, 112] or what is indexed as that, together N rows in the order of `ids`.
        similarity: in [0, 1]. Pairs far below the bands' threshold (1/14)^(1/8) = 0.72 are rarely looked at.
        memory_bytes: what the index of one band may take; larger bands are worked through in parts.
    """
    rank = np.empty(len(ids), np.int64)
    rank[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    stacked = _Stacked(signatures)
    parents = np.arange(len(ids))
    _join(parents, rank, _neighbours(digests, np.arange(len(ids)), rank))
    exact = _roots(parents)
    # Of equal texts one stands for all: the candidates below are distinct texts.
    distinct = np.flatnonzero(exact == np.arange(len(ids)))
    for band in range(BANDS):
        for keys, members in stacked.keys(band, distinct, memory_bytes):
            pairs = _neighbours(keys, members, rank)
            _join(parents, rank, pairs[stacked.estimate(pairs) >= similarity])
    keeper = _roots(parents)
    order = np.arange(len(ids))
    kind = np.where(keeper == order, KEPT, np.where(digests == digests[keeper], EXACT, NEAR)).astype(np.uint8)
    estimate = np.ones(len(ids), np.float32)
    near = np.flatnonzero(kind == NEAR)
    estimate[near] = stacked.estimate(np.stack([near, keeper[near]], axis=1))
    return Duplicates(keeper, kind, estimate)


class _Stacked:
    """The signatures of all shards as one array that stays on disk."""

    def __init__(self, parts: Sequence[np.ndarray]):
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, self._parts)])

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """uint32 [len(indices), 112]."""
        taken = np.empty((len(indices), WIDTH), np.uint32)
        shard = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(shard):
            mine = shard == number
            taken[mine] = self._parts[number][indices[mine] - self._starts[number]]
        return taken

    def estimate(self, pairs: np.ndarray) -> np.ndarray:
        """Share of equal minima of each pair, float32; 0 where a signature is empty."""
        shares = np.empty(len(pairs), np.float32)
        for start in range(0, len(pairs), _CHUNK):
            left, right = (self.rows(side) for side in pairs[start:start + _CHUNK].T)
            shares[start:start + _CHUNK] = np.where(left[:, 0] == EMPTY, 0, (left == right).mean(axis=1))
        return shares

    def keys(self, band: int, members: np.ndarray, memory_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(keys, members) of a band in as many parts as memory asks for; equal keys are in one part."""
        parts = max(1, -(-len(members) * _ENTRY_BYTES // memory_bytes))
        for part in range(parts):
            found = []
            for start in range(0, len(members), _CHUNK):
                chunk = members[start:start + _CHUNK]
                key = _band_keys(self.rows(chunk)[:, band * ROWS:(band + 1) * ROWS])
                mine = key % np.uint64(parts) == part
                found.append((key[mine], chunk[mine]))
            yield tuple(map(np.concatenate, zip(*found))) if found else (np.empty(0, np.uint64), np.empty(0, np.int64))


@njit(cache=True, nogil=True)
def _band_keys(rows: np.ndarray) -> np.ndarray:
    """One uint64 per row of a band: FNV-1a over its words."""
    keys = np.empty(len(rows), np.uint64)
    for index in range(len(rows)):
        value = np.uint64(0xCBF29CE484222325)
        for word in rows[index]:
            value = (value ^ np.uint64(word)) * np.uint64(0x100000001B3)
            value ^= value >> np.uint64(29)
        keys[index] = value
    return keys


def _neighbours(keys: np.ndarray, members: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Pairs [P, 2] of members with equal keys: each with the first of its bucket by rank, and with the one before it."""
    order = np.lexsort((rank[members], keys))
    keys, members = keys[order], members[order]
    same = np.flatnonzero(keys[1:] == keys[:-1]) + 1
    first = np.searchsorted(keys, keys[same])
    pairs = np.concatenate([np.stack([members[same], members[first]], axis=1), np.stack([members[same], members[same - 1]], axis=1)])
    return pairs.reshape(-1, 2)


@njit(cache=True, nogil=True)
def _join(parents: np.ndarray, rank: np.ndarray, pairs: np.ndarray) -> None:
    """Union-find; the root of a set is its member of lowest rank."""
    for index in range(len(pairs)):
        left, right = _root(parents, pairs[index, 0]), _root(parents, pairs[index, 1])
        if rank[left] > rank[right]:
            parents[left] = right
        elif left != right:
            parents[right] = left


@njit(cache=True, nogil=True)
def _root(parents: np.ndarray, index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


@njit(cache=True, nogil=True)
def _roots(parents: np.ndarray) -> np.ndarray:
    return np.array([_root(parents, index) for index in range(len(parents))], dtype=np.int64)
