"""Rows into a Parquet file, a few hundred in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

_ROWS = 512


class RowWriter:
    """Takes rows one by one; the file is readable after `close`. Members of a row that the schema does not name are left out."""

    def __init__(self, path: Path, schema: pyarrow.Schema):
        self._schema = schema
        self._file = pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """One row.

        Raises:
            KeyError: a column is missing.
        """
        self._rows.append({name: row[name] for name in self._schema.names})
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._rows:
            self._file.write_table(pyarrow.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()
