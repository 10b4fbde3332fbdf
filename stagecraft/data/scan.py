"""One compiled pass over a text's code points: its tokens and lines with their hashes, for the rules and for deduplication.

A token is what `\\w+|([^\\w\\s])\\1*` matches: a word, or a run of one symbol; that is close to what spaCy gives on prose and needs
no language's rules. Chinese or Japanese text without blanks is one word per clause.
"""

# ruff: noqa: ANN001, ANN201 - the compiled functions take arrays and scalars, not Python objects

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numba import njit

# What a character is; bits of `character_classes()`.
WORD, SPACE, LETTER, BREAK, PUNCTUATION, TERMINAL, DIGIT = (1 << bit for bit in range(7))
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial hashes: odd, with irregular bits
_POINTS = 0x110000
_ASSIGNED = 0x40000  # no character above is a word character, a blank or cased


@dataclass(frozen=True)
class Scan:
    """A text's tokens and lines; positions are code points, ends are exclusive.

    Args:
        codes: uint32 [characters].
        token_start, token_end: int32 [tokens].
        token_polynomial: uint64 [tokens]; sum of (code + 1) * BASE^(distance from the token's end), modulo 2^64. The polynomial of a
            concatenation follows from those of its parts; low bits are poor, so `mix` before use as a key.
        token_hash_lower: uint64 [tokens]; mixed hash of the token in lower case.
        token_class: uint8 [tokens]; the classes of its characters, or-ed. WORD is set for words and not for symbols.
        token_symbolic: bool [tokens]; every character is in datatrove's set of punctuation.
        line_start, line_end: int32 [lines]; lines as `text.split("\\n")` gives them.
        line_hash: uint64 [lines]; mixed.
        line_blank: bool [lines]; nothing but blanks.
    """

    codes: np.ndarray
    token_start: np.ndarray
    token_end: np.ndarray
    token_polynomial: np.ndarray
    token_hash_lower: np.ndarray
    token_class: np.ndarray
    token_symbolic: np.ndarray
    line_start: np.ndarray
    line_end: np.ndarray
    line_hash: np.ndarray
    line_blank: np.ndarray

    @property
    def word_start(self) -> np.ndarray:
        """int32 [words]: where each `\\w+` starts."""
        return self.token_start[self._words]

    @property
    def word_end(self) -> np.ndarray:
        """int32 [words]: where each `\\w+` ends."""
        return self.token_end[self._words]

    @property
    def word_hash_lower(self) -> np.ndarray:
        """uint64 [words]: mixed hash of each `\\w+` in lower case, character by character (so a final sigma stays U+03C3)."""
        return self.token_hash_lower[self._words]

    @property
    def _words(self) -> np.ndarray:
        return (self.token_class & WORD) != 0


def scan(text: str) -> Scan:
    """Tokens and lines of `text`; lone surrogates count as symbols."""
    codes = code_points(text)
    return Scan(codes, *_scan(codes, character_classes(), lower_case()))


def code_points(text: str) -> np.ndarray:
    """The text's code points, uint32 [characters]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@cache
def character_classes() -> np.ndarray:
    """uint8 [code points]: bits WORD (`\\w`), SPACE (`\\s`), LETTER (isalpha), DIGIT (`\\d`), BREAK (ends a line), and datatrove's sets."""
    from datatrove.utils.text import PUNCTUATION_SET, TERMINAL_PUNCTUATION

    classes = np.zeros(_POINTS, np.uint8)
    for code in range(_ASSIGNED):
        character = chr(code)
        classes[code] = ((WORD if character.isalnum() else 0) | (SPACE if character.isspace() else 0)
                         | (LETTER if character.isalpha() else 0) | (DIGIT if character.isdecimal() else 0))
    classes[ord("_")] |= WORD
    for bit, members in ((BREAK, "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"), (PUNCTUATION, PUNCTUATION_SET), (TERMINAL, TERMINAL_PUNCTUATION)):
        for character in members:
            classes[ord(character)] |= bit
    return classes


@cache
def lower_case() -> np.ndarray:
    """uint32 [code points]: the lower-case character; itself where that is longer than one."""
    lower = np.arange(_POINTS, dtype=np.uint32)
    for code in range(_ASSIGNED):
        character = chr(code).lower()
        if len(character) == 1:
            lower[code] = ord(character)
    return lower


@njit(cache=True, nogil=True)
def mix(value):
    """SplitMix64's finaliser (Steele et al. 2014), a bijection that makes every bit depend on all."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@njit(cache=True, nogil=True)
def _scan(codes, classes, lower):
    size = len(codes)
    start, end = np.empty(size, np.int32), np.empty(size, np.int32)
    polynomial, lowered = np.empty(size, np.uint64), np.empty(size, np.uint64)
    kind, symbolic = np.empty(size, np.uint8), np.empty(size, np.bool_)
    breaks = 1
    for position in range(size):
        breaks += codes[position] == 10
    line_start, line_end = np.empty(breaks, np.int32), np.empty(breaks, np.int32)
    line_hash, line_blank = np.empty(breaks, np.uint64), np.empty(breaks, np.bool_)
    one = np.uint64(1)

    tokens = position = 0
    while position < size:
        code = codes[position]
        class_ = classes[code]
        if class_ & SPACE:
            position += 1
            continue
        start[tokens] = position
        hash_, hash_lower, union, common = np.uint64(0), np.uint64(0), np.uint8(0), np.uint8(255)
        first, word = code, class_ & WORD
        while True:
            hash_ = hash_ * BASE + np.uint64(code) + one
            hash_lower = hash_lower * BASE + np.uint64(lower[code]) + one
            union |= class_
            common &= class_
            position += 1
            if position == size:
                break
            code = codes[position]
            class_ = classes[code]
            if (class_ & WORD) != word or (word == 0 and code != first):
                break
        end[tokens] = position
        polynomial[tokens], lowered[tokens] = hash_, mix(hash_lower)
        kind[tokens], symbolic[tokens] = union, (common & PUNCTUATION) != 0
        tokens += 1

    line = begin = 0
    hash_, common = np.uint64(0), np.uint8(255)
    for position in range(size + 1):
        if position == size or codes[position] == 10:
            line_start[line], line_end[line] = begin, position
            line_hash[line], line_blank[line] = mix(hash_), (common & SPACE) != 0
            line, begin = line + 1, position + 1
            hash_, common = np.uint64(0), np.uint8(255)
        else:
            hash_ = hash_ * BASE + np.uint64(codes[position]) + one
            common &= classes[codes[position]]
    return (start[:tokens].copy(), end[:tokens].copy(), polynomial[:tokens].copy(), lowered[:tokens].copy(), kind[:tokens].copy(),
            symbolic[:tokens].copy(), line_start, line_end, line_hash, line_blank)
