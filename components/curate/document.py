"""A document on its way through curation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text.

    Args:
        source: the kind of place it comes from (`stdlib`, `descriptions`, `licences`, or `input`).
        name: where it lies there: the path below the source's root, `:line` added for a row of a file.
        text: its text.
    """

    source: str
    name: str
    text: str

    @property
    def id(self) -> str:
        """16 hex digits that depend on source and name alone, so on no other document and no order."""
        return identify(self.source, self.name)


def identify(source: str, name: str) -> str:
    """The id of the document `name` of `source`."""
    return hashlib.sha256(f"{source}/{name}".encode()).hexdigest()[:16]


def size(documents: list[Document]) -> int:
    """UTF-8 bytes of the texts."""
    return sum(len(document.text.encode()) for document in documents)
