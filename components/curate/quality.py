"""The quality rules: what a text must be like to be worth training on."""

from __future__ import annotations

import re

from components.curate.params import QualityParams
from stagecraft.data.tokenizer import CONTROL, MARKERS

_MARKUP = re.compile("|".join([CONTROL.pattern, *map(re.escape, MARKERS)]))
_LETTERS = re.compile(r"[^\W\d_]|\s")
_ASCII = re.compile(r"[\x00-\x7f]+")
_PLAIN_LETTERS = bytes(code for code in range(128) if _LETTERS.match(chr(code)))


def broken_bound(text: str, bounds: QualityParams) -> str | None:
    """The first bound that a text of any kind is outside of, cheap ones first; None if it is within all."""
    if len(text) < bounds.min_characters:
        return "too_short"
    if len(text) > bounds.max_characters:
        return "too_long"
    if max(map(len, text.split("\n"))) > bounds.max_line_characters:
        return "long_line"
    # Such strings would become control tokens; a text about chat formats must not end a document or open a turn.
    if _MARKUP.search(text) is not None:
        return "control_markup"
    if not text.isascii() and len(text.encode("ascii", "ignore")) < bounds.min_ascii_share * len(text):
        return "not_ascii"
    if letters(text) < bounds.min_letter_share * len(text):
        return "few_letters"
    return "repetitive" if repeated_share(text) > bounds.max_repeated_share else None


def letters(text: str) -> int:
    """Number of letters and white-space characters."""
    plain = text.encode("ascii", "ignore")
    count = len(plain) - len(plain.translate(None, _PLAIN_LETTERS))
    return count if len(plain) == len(text) else count + len(_LETTERS.findall(_ASCII.sub("", text)))


def repeated_share(text: str) -> float:
    """Share of the characters that lie in lines seen before in the same text; blank lines do not count."""
    seen: set[str] = set()
    total = repeated = 0
    for line in text.split("\n"):
        stripped = line.strip()
        total += len(stripped)
        if stripped in seen:
            repeated += len(stripped)
        seen.add(stripped)
    return repeated / total if total else 0.0
