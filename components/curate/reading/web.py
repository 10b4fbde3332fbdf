"""Text of web pages, single or from web archives, extracted as FineWeb does: with trafilatura."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from components.curate.reading.encoding import UnreadableError, decode

_HEAD = 4096  # bytes that a `meta` is looked for in; browsers look at 1024
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_META = re.compile(rb"<meta\s[^>]*" + _CHARSET.pattern, re.IGNORECASE)


def charset(data: bytes, content_type: str = "") -> str:
    """The encoding that a page declares: in its Content-Type, or in a `meta` at its beginning; "" if it does not."""
    found = _CHARSET.search(content_type.encode("ascii", "replace")) or _META.search(data[:_HEAD])
    return found[1].decode() if found else ""


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
                content_type = record.http_headers.get_header("Content-Type") if record.http_headers else None
                page, encoding = decode(data, charset(data, content_type or ""))
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
