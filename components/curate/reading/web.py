"""Text of web pages, single or from web archives, extracted as FineWeb does: with trafilatura."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from components.curate.reading.encoding import UnreadableError, decode


def extract(page: str) -> str:
    """The main text of an HTML page, without navigation and comments; empty if it has none."""
    from trafilatura import extract as main_text

    return main_text(page, favor_precision=True, include_comments=False, deduplicate=False) or ""


def records(stream: IO[bytes], broken: Callable[[int, str], None], limit: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number of the record from 1, text, known) of the pages of a web archive, compressed or not.

    Raises:
        UnreadableError: it is no web archive, or breaks off.
    """
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    try:
        for number, record in enumerate(ArchiveIterator(stream), 1):
            if record.rec_type != "response" or (record.http_headers and not _is_page(record.http_headers)):
                continue
            data = record.content_stream().read(limit + 1)
            if len(data) > limit:
                broken(number, f"longer than {limit} bytes (curate.max_document_bytes)")
                continue
            try:
                page, encoding = decode(data)
            except UnreadableError as error:
                broken(number, str(error))
                continue
            if text := extract(page):
                yield number, text, {"encoding": encoding, "url": record.rec_headers.get_header("WARC-Target-URI") or ""}
            else:
                broken(number, "a page without text")
    except (ArchiveLoadFailed, EOFError, zlib.error) as error:
        raise UnreadableError(f"not a web archive, or cut off: {' '.join(str(error).split())}") from None


def _is_page(headers: Any) -> bool:
    return headers.get_statuscode() == "200" and "html" in (headers.get_header("Content-Type") or "html")
