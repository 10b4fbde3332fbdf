"""FineWeb's own rules (Penedo et al. 2024, arXiv 2406.17557, 3.7): lists, menus and pages of repeated lines."""

# ruff: noqa: ANN001 - the compiled functions take arrays and scalars, not Python objects

from __future__ import annotations

from numba import njit

from components.curate.rules.bounds import RuleBounds
from components.curate.rules.repetition import duplicates
from stagecraft.data.scan import TERMINAL, Scan, character_classes

_NAMES = ("empty", "line_punctuation", "short_lines", "dup_line_chars", "list_lines")


def failed(scanned: Scan, bounds: RuleBounds) -> str | None:
    """The first of the rules that the text breaks, or None."""
    index = _check(scanned.codes, character_classes(), len(scanned.token_start), scanned.line_start, scanned.line_end, scanned.line_hash,
                   scanned.line_blank, float(bounds.fineweb_min_punctuated_lines), bounds.fineweb_allow_no_punctuated_line,
                   float(bounds.fineweb_max_short_lines), bounds.fineweb_short_line,
                   float(bounds.fineweb_max_duplicate_line_characters), float(bounds.fineweb_max_newlines_per_word))
    return None if index < 0 else f"fineweb_{_NAMES[index]}"


@njit(cache=True, nogil=True)
def _check(codes, classes, tokens, start, end, hashes, blank, min_punctuated, allow_none, max_short, short_line,
           max_duplicate, max_newlines):
    """Index of the first broken rule in _NAMES, or -1."""
    lines = punctuated = short = 0
    for line in range(len(start)):
        if not blank[line]:
            lines += 1
            punctuated += (classes[codes[end[line] - 1]] & TERMINAL) != 0
            short += end[line] - start[line] <= short_line
    if lines == 0:
        return 0
    if punctuated / lines < min_punctuated and not (allow_none and punctuated == 0):
        return 1
    if short / lines > max_short:
        return 2
    newlines = len(start) - 1
    if duplicates(hashes[~blank], (end - start)[~blank])[1] / (len(codes) - newlines) > max_duplicate:
        return 3
    if newlines / tokens > max_newlines:
        return 4
    return -1
