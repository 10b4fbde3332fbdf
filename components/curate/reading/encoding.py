"""From bytes to text: the encoding is found, and text that was decoded wrongly once before is mended."""

from __future__ import annotations

import codecs
import re

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LOOKED_AT = 65536  # bytes that the encoding is guessed from
# UTF-8 read as Latin-1 or Windows-1252 leaves these pairs, which are rare in any language.
_MOJIBAKE = re.compile("[\u00c2-\u00c6\u00d0\u00d1][\u0080-\u00bf\u2018-\u201e\u2020-\u2022]|\u00e2\u20ac")


class UnreadableError(Exception):
    """The file is not what its name says; the text says why."""


def decode(data: bytes) -> tuple[str, str]:
    """(text, encoding it was in): what a byte order mark says, else UTF-8, else the likeliest by its statistics.

    Raises:
        UnreadableError: it is binary.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return mend(data.decode(encoding)), encoding
            except UnicodeDecodeError as error:
                raise UnreadableError(f"not {encoding.upper()} at byte {error.start}") from None
    if b"\0" in data:
        raise UnreadableError("binary: it holds NUL bytes")
    try:
        return mend(data.decode()), "utf-8"
    except UnicodeDecodeError:
        return _guess(data)


def mend(text: str) -> str:
    """Undo a wrong decoding, if the text shows traces of one; lone surrogates become question marks."""
    if text.isascii():
        return text
    text = text.encode("utf-8", "replace").decode()
    if _MOJIBAKE.search(text):
        import ftfy

        text = ftfy.fix_encoding(text)
    return text


def _guess(data: bytes) -> tuple[str, str]:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:_LOOKED_AT]).best()
    if best is None:
        raise UnreadableError("binary, or in an unknown encoding")
    return mend(data.decode(best.encoding, "replace")), best.encoding
