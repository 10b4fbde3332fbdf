"""From bytes to text: the encoding is found, and text that was decoded wrongly once before is mended."""

from __future__ import annotations

import codecs
import re
from functools import cache

from stagecraft.data.language import LanguageId

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LEGACY = ("cp1252", "cp1250", "cp1251", "koi8_r", "cp1253", "cp1254", "cp932", "gb18030", "big5", "euc_jp", "euc_kr")  # of ties the first
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_LOOKED_AT = 65536  # bytes that the encoding is guessed from
# UTF-8 read as Latin-1 or Windows-1252 leaves these pairs, which are rare in any language.
_MOJIBAKE = re.compile("[\u00c2-\u00c6\u00d0\u00d1][\u0080-\u00bf\u2018-\u201e\u2020-\u2022]|\u00e2\u20ac")


class UnreadableError(Exception):
    """The file is not what its name says; the text says why."""


def decode(data: bytes) -> tuple[str, str]:
    """(text, encoding it was in): what a byte order mark says, else UTF-8, else the likeliest by its language.

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
    """The encoding in which the bytes' beginning reads most like some language."""
    best = (0.0, "")
    for encoding in _LEGACY:
        text = codecs.getincrementaldecoder(encoding)("replace").decode(data[:_LOOKED_AT])
        if "\N{REPLACEMENT CHARACTER}" not in text and not _CONTROL.search(text):
            best = max(best, (_language().identify(text)[1], encoding), key=lambda item: item[0])
    if not best[1]:
        raise UnreadableError("binary, or in an unknown encoding")
    return mend(data.decode(best[1], "replace")), best[1]


@cache
def _language() -> LanguageId:
    return LanguageId()
