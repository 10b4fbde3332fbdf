"""Normalisation and the quality rules: what a text must be like to be worth training on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace

from components.curate.document import Document
from components.curate.params import QualityParams
from stagecraft.data.tokenizer import MARKERS, SPECIAL

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_TRAILING = re.compile(r"[ \t]+$", re.MULTILINE)
_BLANKS = re.compile(r"\n{4,}")
_MARKUP = re.compile("|".join(map(re.escape, (*SPECIAL, *MARKERS))))
_LETTERS = re.compile(r"[^\W\d_]|\s")


def normalise(document: Document) -> Document:
    """Unicode NFC, newlines as \\n, no control characters, no trailing blanks, at most two empty lines in a row."""
    text = unicodedata.normalize("NFC", document.text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _BLANKS.sub("\n\n\n", _TRAILING.sub("", _CONTROL.sub("", text)))
    return replace(document, text=text.strip("\n") + "\n")


def quality_rules(bounds: QualityParams) -> dict[str, Callable[[str], bool]]:
    """Rule name -> whether a text breaks it. Cheap rules come first; the first that is broken is the one counted."""
    return {
        "too_short": lambda text: len(text) < bounds.min_characters,
        "too_long": lambda text: len(text) > bounds.max_characters,
        "long_line": lambda text: max(map(len, text.split("\n"))) > bounds.max_line_characters,
        # Such strings would become control tokens; a text about chat formats must not end a document or open a turn.
        "control_markup": lambda text: _MARKUP.search(text) is not None,
        "not_ascii": lambda text: len(text.encode("ascii", "ignore")) < bounds.min_ascii_share * len(text),
        "few_letters": lambda text: len(_LETTERS.findall(text)) < bounds.min_letter_share * len(text),
        "repetitive": lambda text: repeated_share(text) > bounds.max_repeated_share,
    }


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
