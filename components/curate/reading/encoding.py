"""From bytes to text: the encoding is found, and text that was decoded wrongly once before is mended."""

from __future__ import annotations

import codecs
import re
from contextlib import suppress

import webencodings

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_LOOKED_AT = 65536  # bytes that the encoding is guessed from
# What is decoded by what has all its characters and more, beside those pairs that WHATWG's standard Encoding has.
_WIDER = {"shift_jis": "cp932", "euc_kr": "cp949", "gbk": "gb18030", "big5": "big5hkscs"}
_NOT_DECLARED = ("utf-16le", "utf-16be", "replacement", "x-user-defined")  # a `meta` in one of these could not be read
# UTF-8 read as Latin-1 or Windows-1252 leaves these pairs, which are rare in any language.
_MOJIBAKE = re.compile("[\u00c2-\u00c6\u00d0\u00d1][\u0080-\u00bf\u2018-\u201e\u2020-\u2022]|\u00e2\u20ac")


class UnreadableError(Exception):
    """The file is not what its name says; the text says why."""


def decode(data: bytes, declared: str = "") -> tuple[str, str]:
    """(text, encoding it was in): what a byte order mark says, else UTF-8, else what is declared, else the likeliest by its language.

    UTF-8 goes before what is declared, for text in another encoding is never UTF-8 by chance unless it is ASCII.

    Args:
        declared: name of an encoding, "" for none; one that is unknown or does not fit the bytes is none.

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
    if not data.isascii():
        with suppress(UnicodeDecodeError):
            return mend(data.decode()), "utf-8"
    if encoding := _codec(declared):
        with suppress(UnicodeDecodeError):
            return mend(data.decode(encoding)), encoding
    return (data.decode(), "utf-8") if data.isascii() else _guess(data)


def mend(text: str) -> str:
    """Undo a wrong decoding, if the text shows traces of one; lone surrogates become question marks."""
    if text.isascii():
        return text
    text = text.encode("utf-8", "replace").decode()
    if _MOJIBAKE.search(text):
        import ftfy

        text = ftfy.fix_encoding(text)
    return text


def _codec(label: str) -> str:
    """Python's codec for what a page or chardet calls an encoding, as browsers understand the name; "" if they do not."""
    found = webencodings.lookup(label)
    if found is None or found.name in _NOT_DECLARED:
        return ""
    return _WIDER.get(found.codec_info.name, found.codec_info.name)


def _guess(data: bytes) -> tuple[str, str]:
    import chardet

    eras = chardet.EncodingEra.MODERN_WEB | chardet.EncodingEra.LEGACY_ISO
    found = chardet.detect(data, encoding_era=eras, max_bytes=_LOOKED_AT)["encoding"]
    if not found:
        raise UnreadableError("binary, or in an unknown encoding")
    encoding = _codec(found) or codecs.lookup(found).name
    return mend(data.decode(encoding, "replace")), encoding
