"""Rows of benchmarks as they are published: Parquet, JSON lines or CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet

from stagecraft.contract.errors import UserError


def read_table(path: Path) -> list[dict[str, Any]]:
    """All rows of a file whose suffix is one of `READERS`.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return READERS[path.suffix](path)
    except (ValueError, OSError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read: {error}", where=str(path), mend="fetch it anew") from None


def strings(value: Any) -> Iterator[str]:
    """The strings of a row, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.strip()]


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".parquet": lambda path: pyarrow.parquet.read_table(path).to_pylist(), ".jsonl": _read_lines,
    ".csv": lambda path: pyarrow.csv.read_csv(path, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)).to_pylist(),
}
