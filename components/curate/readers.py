"""One reader per kind of file: the texts in it, and which of its rows are unreadable."""

from __future__ import annotations

import json
from collections.abc import Callable
from email import message_from_string
from pathlib import Path

# Row number (0: the whole file) with its text; row number -> why it is unreadable.
Texts = tuple[list[tuple[int, str]], dict[int, str]]


class UnreadableError(Exception):
    """The file is not what its name says; the text says why."""


def read_plain(path: Path) -> Texts:
    """A file that is one document. Of a package's METADATA only the description: the headers are no prose."""
    text = _decode(path.read_bytes())
    if path.name == "METADATA":
        message = message_from_string(text)
        text = message.get_payload() or message.get("Description", "")
    return [(0, text)], {}


def read_jsonl(path: Path) -> Texts:
    """JSON lines, each an object with the text under `text`; rows are numbered from 1."""
    texts, broken = [], {}
    for number, line in enumerate(_decode(path.read_bytes()).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            broken[number] = f"not JSON: {error}"
            continue
        if isinstance(row, dict) and isinstance(row.get("text"), str):
            texts.append((number, row["text"]))
        else:
            broken[number] = "no member `text` with a string"
    return texts, broken


def read_parquet(path: Path) -> Texts:
    """Parquet with a column `text`; rows are numbered from 1."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table

    try:
        column = read_table(path, columns=["text"])["text"].to_pylist()
    except (ArrowException, KeyError) as error:
        raise UnreadableError(f"not Parquet with a column `text`: {error}") from None
    texts = [(number, text) for number, text in enumerate(column, 1) if isinstance(text, str)]
    broken = {number: "`text` is no string" for number, text in enumerate(column, 1) if not isinstance(text, str)}
    return texts, broken


READERS: dict[str, Callable[[Path], Texts]] = {
    ".txt": read_plain, ".md": read_plain, ".rst": read_plain, ".py": read_plain, ".jsonl": read_jsonl, ".parquet": read_parquet,
}


def _decode(data: bytes) -> str:
    if b"\0" in data:
        raise UnreadableError("binary: it holds NUL bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 at byte {error.start}") from None
