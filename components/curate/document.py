"""The identity of a document: where it comes from, and nothing else."""

from __future__ import annotations

import hashlib


def identify(source: str, name: str) -> str:
    """16 hex digits that depend on source and name alone, so on no other document and no order.

    Args:
        source: the kind of place the document comes from.
        name: where it lies there: the path below the source's root, `:row` added for a row of a file.
    """
    return hashlib.sha256(f"{source}/{name}".encode()).hexdigest()[:16]
