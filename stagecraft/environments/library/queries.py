"""SELECTs on a database that is made for them: a policy's are run in the sandbox, where this file is laid as it stands.

Hence it imports the standard library alone.
"""

import contextlib
import sqlite3
import time
from typing import Any

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_SECONDS, _ROWS, _BYTES = 0.5, 1000, 100_000
_LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: _BYTES, sqlite3.SQLITE_LIMIT_COLUMN: 64}


def answer(script: str, sql: str) -> dict[str, Any]:
    """{"rows": ...} of a query on the database that a script makes, or {"error": why there are none}."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(script)
        try:
            return {"rows": _select(connection, sql)}
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            return {"error": str(error)}


def _select(connection: sqlite3.Connection, sql: str) -> list[list[object]]:
    """The rows of one SELECT.

    Raises:
        ValueError: it gives too much, or what JSON has no word for; sqlite3's own, also where it is no SELECT or takes too long.
    """
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
    for limit, most in _LIMITS.items():
        connection.setlimit(limit, most)
    deadline = time.monotonic() + _SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
    rows: list[list[object]] = []
    size = 0
    for row in connection.execute(sql):
        if any(isinstance(value, bytes) for value in row):
            raise ValueError("a value is a blob: select numbers and text")
        size += len(repr(row))
        if len(rows) == _ROWS or size > _BYTES:
            raise ValueError(f"more than {_ROWS} rows or {_BYTES} characters")
        rows.append(list(row))
    return rows
