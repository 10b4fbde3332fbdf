"""Manual pages as plain text: the words of troff's man and mdoc macros without their markup."""

from __future__ import annotations

import re
import unicodedata

_ESCAPES = {
    "-": "-", "e": "\\", "(aq": "'", "(dq": '"', "(em": "-", "(en": "-", "(bu": "*", "(co": "(C)", "(lq": '"', "(rq": '"', "(ti": "~",
    "(ha": "^", "(cq": "'", "(oq": "'", "(bs": "\\", "(ss": "ß", "~": " ", "0": " ", " ": " ", "'": "'", "`": "`",
}
_ACCENTS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", ":": "\u0308", "~": "\u0303", ",": "\u0327", "o": "\u030a"}
_ESCAPE = re.compile(r"\\(f(?:\[[^]]*\]|\(..|.)|s[-+]?\d|\*\[[^]]*\]|\*\(..|\*.|\[[^]]*\]|\(..|[mvhwk]'[^']*'|[-e&|^/,~0 :%c'`])")
_COMMENT = re.compile(r'\\["#].*$')
_HEADINGS = {"SH", "SS", "Sh", "Ss"}
_BREAKS = {"PP", "P", "LP", "Pp", "sp", "TP", "IP", "HP", "It"}
_WORDS = frozenset(
    "B I BR IR RB RI BI IB SM SB Nm Nd Op Ar Fl Cm Pa Xr Li Em Sy Ql Dq Sq Va Ev Dv Er Fn Ft Fa Ic UR MT".split())
_TIGHT = {"BR", "IR", "RB", "RI", "BI", "IB"}  # their arguments are parts of one word


def plain(text: str) -> str:
    """The text of a manual page; empty if the page only names another (`.so`)."""
    lines: list[str] = []
    for line in text.split("\n"):
        line = _COMMENT.sub("", line)
        if line[:1] not in (".", "'"):
            lines.append(_unescape(line))
            continue
        macro, _, rest = line[1:].strip().partition(" ")
        arguments = [_unescape(quoted or word) for quoted, word in re.findall(r'"([^"]*)"|(\S+)', rest)]
        if macro in _HEADINGS:
            lines += ["", " ".join(arguments), ""]
        elif macro in _WORDS:
            lines.append(("" if macro in _TIGHT else " ").join(arguments))
        elif macro in _BREAKS:
            lines += ["", *filter(None, [" ".join(arguments[:1])] if macro in ("IP", "It") else [])]
    return "\n".join(lines).strip("\n")


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: _character(match.group(1)), text)


def _character(name: str) -> str:
    if name in _ESCAPES:
        return _ESCAPES[name]
    if len(name) == 3 and name[0] == "(" and name[1] in _ACCENTS and name[2].isalpha():
        return unicodedata.normalize("NFC", name[2] + _ACCENTS[name[1]])
    if match := re.fullmatch(r"\[u([0-9A-F]{4,6})\]", name):
        return chr(int(match.group(1), 16))
    return ""
