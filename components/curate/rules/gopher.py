"""Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, A1.1): does the text look like prose?"""

# ruff: noqa: ANN001 - the compiled functions take arrays and scalars, not Python objects

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from components.curate.rules.bounds import RuleBounds
from stagecraft.data.scan import BREAK, LETTER, SPACE, Scan, character_classes, scan

_NAMES = ("few_words", "many_words", "short_mean_word", "long_mean_word", "hash_symbols", "ellipses", "bullet_lines", "ellipsis_lines",
          "few_letter_words", "few_stop_words")
_DOT, _ELLIPSIS, _HASH, _BULLET, _HYPHEN = (ord(character) for character in ".…#•-")


def failed(scanned: Scan, bounds: RuleBounds) -> str | None:
    """The first of the rules that the text breaks, or None."""
    limits, stop_words = _compiled(bounds)
    index = _check(scanned.codes, character_classes(), scanned.token_start, scanned.token_end, scanned.token_polynomial,
                   scanned.token_class, scanned.token_symbolic, stop_words, limits)
    return None if index < 0 else f"gopher_{_NAMES[index]}"


@lru_cache
def _compiled(bounds: RuleBounds) -> tuple[np.ndarray, np.ndarray]:
    symbols = bounds.gopher_max_symbols_per_word
    limits = (bounds.gopher_min_words, bounds.gopher_max_words, bounds.gopher_min_mean_word, bounds.gopher_max_mean_word, symbols, symbols,
              bounds.gopher_max_bullet_lines, bounds.gopher_max_ellipsis_lines, bounds.gopher_min_letter_words,
              bounds.gopher_min_stop_words)
    stop_words = [scan(word).token_polynomial for word in bounds.gopher_stop_words]
    return np.array(limits, np.float64), np.concatenate([np.empty(0, np.uint64), *stop_words])


@njit(cache=True, nogil=True)
def _check(codes, classes, start, end, polynomial, kind, symbolic, stop_words, limits):
    """Index of the first broken rule in _NAMES, or -1."""
    tokens = len(start)
    words = characters = with_letter = 0
    for token in range(tokens):
        with_letter += (kind[token] & LETTER) != 0
        if not symbolic[token]:
            words += 1
            characters += end[token] - start[token]
    if words < limits[0]:
        return 0
    if words > limits[1]:
        return 1
    if words and characters / words < limits[2]:
        return 2
    if words and characters / words > limits[3]:
        return 3
    if tokens == 0:  # no further rule is about a text without tokens
        return -1
    hashes, ellipses = _symbols(codes)
    if hashes / tokens > limits[4]:
        return 4
    if ellipses / tokens > limits[5]:
        return 5
    lines, bullets, open_ended = _lines(codes, classes)
    if bullets / lines > limits[6]:
        return 6
    if open_ended / lines > limits[7]:
        return 7
    if with_letter / tokens < limits[8]:
        return 8
    found = 0
    for word in stop_words:
        for token in range(tokens):
            if polynomial[token] == word:
                found += 1
                break
        if found >= limits[9]:
            return -1
    return 9 if found < limits[9] else -1


@njit(cache=True, nogil=True)
def _symbols(codes):
    """(number signs, ellipses): three dots, not overlapping, or the character."""
    hashes = ellipses = dots = 0
    for code in codes:
        hashes += code == _HASH
        dots = dots + 1 if code == _DOT else 0
        if dots == 3 or code == _ELLIPSIS:
            ellipses += 1
            dots = 0
    return hashes, ellipses


@njit(cache=True, nogil=True)
def _lines(codes, classes):
    """(lines as `str.splitlines` gives them, those that start with a bullet, those that end with an ellipsis)."""
    lines = bullets = open_ended = dots = 0
    first = True  # no character but blanks was in the line so far
    last_ellipsis = False
    size = len(codes)
    for position in range(size + 1):
        code = codes[position] if position < size else np.uint32(10)
        class_ = classes[code]
        if class_ & BREAK:
            ends = position == size
            if (ends and position > 0 and classes[codes[position - 1]] & BREAK) or (
                    not ends and code == 10 and position > 0 and codes[position - 1] == 13):
                continue  # no line after the last break; \r\n is one break
            lines += 1
            open_ended += last_ellipsis
            first, last_ellipsis, dots = True, False, 0
        elif class_ & SPACE:
            dots = 0
        else:
            if first:
                bullets += code in (_BULLET, _HYPHEN)
                first = False
            dots = dots + 1 if code == _DOT else 0
            last_ellipsis = dots >= 3 or code == _ELLIPSIS
    return lines, bullets, open_ended
