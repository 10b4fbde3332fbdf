"""The documents of a file, one after the other: bounded memory, whatever the file's size."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from email import message_from_string
from typing import IO, Any

import fsspec
import fsspec.compression
import xxhash
import zstandard
from datatrove.data import Document

from components.curate.document import identify
from components.curate.reading.encoding import UnreadableError, decode
from components.curate.reading.kinds import compression_of
from components.curate.reading.licence import licence_of
from components.curate.reading.listing import File
from components.curate.reading.manual import plain
from components.curate.reading.web import charset, extract, records

Broken = Callable[[str, str], None]
Found = Iterator[tuple[int, str, dict[str, Any]]]  # row counted from 1, or 0 for the whole file; text; what is known of it
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, UnreadableError)


def read(file: File, broken: Broken, max_document_bytes: int) -> Iterator[Document]:
    """The documents of a file. Metadata: `source`, `path`, `licence` (SPDX or ""), `digest` (SHA-256 of the text), `encoding`,
    and `url`, `given_id`, `category` where the file has them.

    Args:
        broken: called with the name of a file or row that cannot be read, and why; reading goes on with what follows.
        max_document_bytes: a longer file, or row of a file, is broken; it is never in memory whole.
    """
    name = f"{file.source}/{file.name}"
    found = _READERS[file.kind](file, lambda row, why: broken(f"{name}:{row}" if row else name, why), max_document_bytes)
    row = 0
    while True:
        try:
            row, text, known = next(found)
        except StopIteration:
            return
        except _DAMAGED as error:
            broken(name, f"{_told(error)}; read up to row {row}" if row else _told(error))
            return
        path = f"{file.name}:{row}" if row else file.name
        licence = known.pop("licence", None) or licence_of(file.source, file.path, text)
        yield Document(text, identify(file.source, path), metadata={
            "source": file.source, "path": path, "licence": licence, "digest": hashlib.sha256(text.encode()).hexdigest(), **known})


def _whole(file: File, limit: int, declared: Callable[[bytes], str] = lambda data: "") -> tuple[str, str]:
    with _open(file) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise UnreadableError(f"longer than {limit} bytes (curate.max_document_bytes)")
    return decode(data, declared(data))


def _text(file: File, broken: Callable[[int, str], None], limit: int) -> Found:
    text, encoding = _whole(file, limit)
    yield 0, text, {"encoding": encoding}


def _metadata(file: File, broken: Callable[[int, str], None], limit: int) -> Found:
    """A package's METADATA: only the description, for the headers are no prose."""
    text, encoding = _whole(file, limit)
    message = message_from_string(text)
    yield 0, message.get_payload() or message.get("Description", ""), {"encoding": encoding}


def _manual(file: File, broken: Callable[[int, str], None], limit: int) -> Found:
    text, encoding = _whole(file, limit)
    yield 0, plain(text), {"encoding": encoding}


def _html(file: File, broken: Callable[[int, str], None], limit: int) -> Found:
    text, encoding = _whole(file, limit, charset)
    yield 0, extract(text), {"encoding": encoding}


def _jsonl(file: File, broken: Callable[[int, str], None], limit: int) -> Found:
    """JSON lines, each an object with the text under `text`; `id`, `licence` or `license`, `url`, `category` are kept."""
    first: dict[int, int] = {}
    with _open(file) as stream:
        row = 0
        while line := stream.readline(limit + 1):
            row += 1
            if len(line) > limit:
                broken(row, f"longer than {limit} bytes (curate.max_document_bytes)")
                while line and not line.endswith(b"\n"):
                    line = stream.readline(limit)
                continue
            if not line.strip():
                continue
            try:
                text, encoding = decode(line)
                values = json.loads(text)
            except (ValueError, RecursionError, UnreadableError) as error:
                broken(row, f"not JSON: {error}")
                continue
            if why := _unfit(values, row, first):
                broken(row, why)
            else:
                yield row, _plain(values["text"]), {"encoding": encoding, **_known(values)}


def _parquet(file: File, broken: Callable[[int, str], None], limit: int) -> Found:
    """Parquet with a column `text`, batch by batch."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    first: dict[int, int] = {}
    with _raw(file) as stream:
        try:
            table = ParquetFile(stream)
            columns = set(table.schema_arrow.names) & {"text", "id", "licence", "license", "url", "category"}
            if "text" not in columns:
                raise UnreadableError("Parquet without a column `text`")
            row = 0
            for batch in table.iter_batches(256, columns=sorted(columns)):
                for values in _rows(batch):
                    row += 1
                    why = values if isinstance(values, str) else _unfit(values, row, first)
                    if why is None and len(values["text"].encode()) > limit:
                        why = f"longer than {limit} bytes (curate.max_document_bytes)"
                    if why:
                        broken(row, why)
                    else:
                        yield row, values["text"], {"encoding": "utf-8", **_known(values)}
        except ArrowException as error:
            raise UnreadableError(f"not Parquet: {error}") from None


def _rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a batch of Arrow; a text in place of one that cannot be read, for Arrow takes any bytes for a string."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        for row in range(len(batch)):
            try:
                yield batch.slice(row, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield f"not UTF-8: {error}"
    else:
        yield from rows


def _warc(file: File, broken: Callable[[int, str], None], limit: int) -> Found:
    """A web archive: the text of its pages; rows count all records."""
    with _raw(file) as stream:
        yield from records(stream, broken, limit)


def _unfit(values: Any, row: int, first: dict[int, int]) -> str | None:
    """Why a row is no document; `first` remembers the ids seen, by hash."""
    if not isinstance(values, dict) or not isinstance(values.get("text"), str):
        return "no member `text` with a string"
    if values.get("id") is not None:
        earlier = first.setdefault(xxhash.xxh3_64_intdigest(_plain(values["id"]).encode()), row)
        if earlier != row:
            return f"duplicate id {values['id']!r}: row {earlier} has it"
    return None


def _known(values: dict[str, Any]) -> dict[str, str]:
    names = {"licence": "licence", "license": "licence", "url": "url", "id": "given_id", "category": "category"}
    return {name: _plain(values[key]) for key, name in names.items() if values.get(key)}


def _plain(value: Any) -> str:
    """As text; the lone surrogates that JSON can hold become question marks."""
    return str(value).encode("utf-8", "replace").decode()


def _open(file: File) -> IO[bytes]:
    """The file's bytes, decompressed."""
    stream = _raw(file)
    compression = compression_of(file.name)
    return io.BufferedReader(fsspec.compression.compr[compression](stream, mode="rb")) if compression else stream


def _raw(file: File) -> IO[bytes]:
    """The file's bytes as they are. Local names are not for fsspec, which takes `::` for a chain of file systems."""
    return fsspec.open(file.path, "rb").open() if "://" in file.path else open(file.path, "rb")


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UnreadableError) else f"cannot read: {getattr(error, 'strerror', None) or error}"


_READERS: dict[str, Callable[[File, Callable[[int, str], None], int], Found]] = {
    "text": _text, "metadata": _metadata, "manual": _manual, "html": _html, "jsonl": _jsonl, "parquet": _parquet, "warc": _warc,
}
