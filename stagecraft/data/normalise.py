"""One way to write a text, so that equal texts are equal bytes."""

from __future__ import annotations

import re
import unicodedata

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
# Tried at the start of a run of blanks alone and never with less of it, or a long run inside a line would cost its square.
_TRAILING = re.compile(r"(?<![ \t])[ \t]++$", re.MULTILINE)
_BLANKS = re.compile(r"\n{4,}")


def normalise(text: str) -> str:
    """Unicode NFC, newlines as \\n, no control characters, no trailing blanks, at most two empty lines in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _BLANKS.sub("\n\n\n", _TRAILING.sub("", _CONTROL.sub("", text)))
    return text.strip("\n") + "\n"
