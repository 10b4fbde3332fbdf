"""From bytes to text: the encoding is found, and text that was decoded wrongly once before is mended."""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from functools import cache

from stagecraft.data.language import LanguageId

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_WESTERN = "cp1252"
# What takes Windows-1252's place: (probability of its language above that in Windows-1252, least share of its letters that are not ASCII).
# A few accents in an English text read as well in Greek or Cyrillic letters; that several bytes make a letter is no chance.
_LATIN, _OTHER, _WIDE = (0.02, 0.0), (0.1, 0.2), (0.0, 0.2)
_LEGACY = {"cp1250": _LATIN, "cp1251": _OTHER, "koi8_r": _OTHER, "cp1253": _OTHER, "cp1254": _LATIN,
           **dict.fromkeys(("cp932", "gb18030", "big5", "euc_jp", "euc_kr"), _WIDE)}  # of ties the first
# What pages may declare, by Python's names, and what browsers take for it where that is more (WHATWG's standard Encoding).
_DECLARED = re.compile(r"ascii|iso8859-\d+|cp125\d|cp874|cp932|cp949|koi8-[ru]|gb\w+|big5|euc_(jp|kr)|shift_jis|iso2022_jp")
_WIDER = {"ascii": _WESTERN, "iso8859-1": _WESTERN, "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932",
          "euc_kr": "cp949"}
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_LOOKED_AT = 65536  # bytes that the encoding is guessed from
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
    if encoding := _usable(declared):
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


def _usable(declared: str) -> str:
    try:
        name = codecs.lookup(declared).name if declared else ""
    except (LookupError, ValueError):
        return ""
    return _WIDER.get(name, name) if _DECLARED.fullmatch(name) else ""


def _guess(data: bytes) -> tuple[str, str]:
    """Windows-1252, unless the bytes' beginning is none or reads clearly more like some language in another encoding."""
    western, _ = _likeness(data, _WESTERN) or (-1.0, 0.0)
    found = (western, _WESTERN) if western >= 0 else (0.0, "")
    for encoding, (margin, share) in _LEGACY.items():
        if (likeness := _likeness(data, encoding)) and (western < 0 or (likeness[0] > western + margin and likeness[1] >= share)):
            found = max(found, (likeness[0], encoding), key=lambda item: item[0])
    if not found[1]:
        raise UnreadableError("binary, or in an unknown encoding")
    return mend(data.decode(found[1], "replace")), found[1]


def _likeness(data: bytes, encoding: str) -> tuple[float, float] | None:
    """(probability of the likeliest language of the beginning, share of its letters that are not ASCII); None if it does not fit."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(data[:_LOOKED_AT])
    if "\N{REPLACEMENT CHARACTER}" in text or _CONTROL.search(text):
        return None
    letters = [character for character in text if character.isalpha()]
    return _language().identify(text)[1], sum(not letter.isascii() for letter in letters) / max(1, len(letters))


@cache
def _language() -> LanguageId:
    return LanguageId()
