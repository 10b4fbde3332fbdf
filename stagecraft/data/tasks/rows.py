"""Task rows on disk: JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.contract.files import write_atomic

_REQUIRED = ("id", "family", "messages", "verifier")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read task rows.

    Raises:
        UserError: the file is missing, or a line is no JSON object with `id`, `family`, `messages` and `verifier`.
    """
    try:
        lines = [line for line in Path(path).read_text().split("\n") if line]
    except OSError as error:
        raise UserError(f"cannot read task rows: {error.strerror}", where=str(path), mend="run the stage that makes it: curate") from None
    return [parse_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def parse_row(line: str, where: str) -> dict[str, Any]:
    """One task row.

    Raises:
        UserError: as for `read_rows`.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=where, mend="one JSON object a line") from None
    missing = [key for key in _REQUIRED if not isinstance(row, dict) or key not in row]
    if missing:
        raise UserError(f"task row without {missing[0]!r}", where=where, mend=f"rows need {', '.join(_REQUIRED)}")
    return row


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
