"""Megatron's indexed dataset on disk (`.bin` + `.idx`), written and read with NumPy alone.

The layout is that of `megatron/core/datasets/indexed_dataset.py` (megatron-core 0.19.2, `_IndexWriter`), whose reader is
the oracle of our tests. We do not import it: importing anything of megatron.core loads the whole engine, and Triton.

    .bin  token ids, document after document
    .idx  "MMIDIDX\\0\\0" | version 1: u64 | dtype code: u8 | sequences: u64 | documents + 1: u64
          | length of each sequence in tokens: i32[] | its offset in the .bin in bytes: i64[] | first sequence of each document: i64[]
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from stagecraft.contract.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<QBQQ")
_DTYPES = {4: np.dtype("<i4"), 8: np.dtype("<u2")}  # the two codes Megatron picks for token ids
_LARGEST_FOR_U16 = 65500  # Megatron's bound, DType.optimal_dtype


class IndexedWriter:
    """Writes `prefix.bin` document by document, and on `close` `prefix.idx`, atomically and last.

    Args:
        prefix: path without suffix.
        vocab_size: picks the stored type, uint16 below 65,500 tokens and int32 from there on.
    """

    def __init__(self, prefix: Path, vocab_size: int):
        self._prefix, self._vocab_size = prefix, vocab_size
        self._code = 8 if vocab_size < _LARGEST_FOR_U16 else 4
        self._lengths: list[int] = []
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._stream = _with(prefix, ".bin").open("wb")

    def add(self, document: list[int]) -> None:
        """One document: one sequence of token ids, its end-of-document token included.

        Raises:
            ValueError: a token id outside [0, vocab_size).
        """
        ids = np.asarray(document, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self._vocab_size:
            raise ValueError(f"token id outside [0, {self._vocab_size}) in document {len(self._lengths)}")
        self._stream.write(ids.astype(_DTYPES[self._code]).tobytes())
        self._lengths.append(len(ids))

    def close(self) -> tuple[int, int]:
        """(documents, tokens) written."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        sizes = np.asarray(self._lengths, dtype="<i8")
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * _DTYPES[self._code].itemsize if len(sizes) else sizes
        temporary = _with(self._prefix, f".idx.{os.getpid()}.tmp")
        with temporary.open("wb") as stream:
            stream.write(_MAGIC + _HEAD.pack(1, self._code, len(sizes), len(sizes) + 1))
            stream.write(sizes.astype("<i4").tobytes() + offsets.astype("<i8").tobytes())
            stream.write(np.arange(len(sizes) + 1, dtype="<i8").tobytes())
        temporary.replace(_with(self._prefix, ".idx"))
        return len(sizes), int(sizes.sum())


def read_indexed(prefix: Path) -> list[np.ndarray]:
    """The sequences of `prefix.bin`, as views of a memory map.

    Raises:
        UserError: a file is missing, or the two do not fit each other.
    """
    index, data = _with(prefix, ".idx"), _with(prefix, ".bin")
    mend = "run the stage that makes it: curate"
    try:
        raw = index.read_bytes()
        size = data.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=str(error.filename), mend=mend) from None
    head = len(_MAGIC) + _HEAD.size
    if not raw.startswith(_MAGIC) or len(raw) < head:
        raise UserError("not a Megatron index", where=str(index), mend=mend)
    version, code, sequences, documents = _HEAD.unpack_from(raw, len(_MAGIC))
    if version != 1 or code not in _DTYPES or len(raw) != head + 12 * sequences + 8 * documents:
        raise UserError("damaged index, or of an unknown version", where=str(index), mend=mend)
    dtype = _DTYPES[code]
    lengths = np.frombuffer(raw, "<i4", sequences, head)
    offsets = np.frombuffer(raw, "<i8", sequences, head + 4 * sequences)
    if size != int(lengths.sum()) * dtype.itemsize:
        raise UserError(f"{size} bytes where the index wants {int(lengths.sum()) * dtype.itemsize}", where=str(data), mend=mend)
    tokens = np.memmap(data, dtype, "r") if size else np.empty(0, dtype)
    starts = offsets // dtype.itemsize
    return [tokens[start:start + length] for start, length in zip(starts, lengths)]


def _with(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)
