"""Token files of a few documents."""

from collections.abc import Iterable
from pathlib import Path

from stagecraft.data.indexed import IndexedWriter


def write_indexed(prefix: Path, documents: Iterable[list[int]], vocab_size: int) -> tuple[int, int]:
    """Write all documents at once; see `IndexedWriter`."""
    writer = IndexedWriter(prefix, vocab_size)
    for document in documents:
        writer.add(document)
    return writer.close()
