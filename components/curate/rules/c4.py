"""C4's rules (Raffel et al. 2019, arXiv 1910.10683, 2.2) as one decision on the whole text; no line is taken out of it.

Lines of fewer than three words, with a huge word, about JavaScript or about policies neither count as sentences nor can they
fail the text, as in datatrove's C4QualityFilter(filter_no_terminal_punct=False), whose decision this is. A sentence ends at
terminal punctuation, with closing marks, before a blank; the full-width stops need no blank.
"""

# ruff: noqa: ANN001 - the compiled functions take arrays and scalars, not Python objects

from __future__ import annotations

import numpy as np
from numba import njit

from components.curate.rules.bounds import RuleBounds
from stagecraft.data.scan import BREAK, DIGIT, SPACE, TERMINAL, Scan, character_classes, code_points, lower_case

_NAMES = ("lorem_ipsum", "curly_bracket", "few_sentences")
_LOREM, _JAVASCRIPT, _POLICY = 1, 2, 4
_PHRASES = {"lorem ipsum": _LOREM, "javascript": _JAVASCRIPT, "terms of use": _POLICY, "privacy policy": _POLICY, "cookie policy": _POLICY,
            "uses cookies": _POLICY, "use of cookies": _POLICY, "use cookies": _POLICY}
_OPEN, _CLOSE, _BRACE = ord("["), ord("]"), ord("{")
_WIDE = tuple(ord(character) for character in "。！？｡")
_CLOSING = tuple(ord(character) for character in "\"')]}”’»」』）")
_ROWS = np.zeros((len(_PHRASES), max(map(len, _PHRASES))), np.uint32)
for _row, _phrase in zip(_ROWS, _PHRASES):
    _row[:len(_phrase)] = code_points(_phrase)
_FLAGS = np.array(list(_PHRASES.values()), np.uint8)
_CITATIONS = np.stack([code_points(mark.ljust(17, "\0")) for mark in ("[edit]", "[citation needed]")])


def failed(scanned: Scan, bounds: RuleBounds) -> str | None:
    """The first of the rules that the text breaks, or None."""
    wanted = _LOREM * bool(bounds.c4_lorem_ipsum) | _JAVASCRIPT * bool(bounds.c4_javascript) | _POLICY * bool(bounds.c4_policy)
    index = _check(scanned.codes, character_classes(), lower_case(), _ROWS, _FLAGS, _CITATIONS, wanted, bounds.c4_curly_bracket,
                   bounds.c4_min_sentences, bounds.c4_min_words_per_line, float(bounds.c4_max_word_length))
    return None if index < 0 else f"c4_{_NAMES[index]}"


@njit(cache=True, nogil=True)
def _check(codes, classes, lower, rows, flags, citations, wanted, bracket, min_sentences, min_words, max_length):
    """Index of the first broken rule in _NAMES, or -1."""
    size = len(codes)
    line = np.empty(size, np.uint32)
    lead = np.zeros(128, np.bool_)
    lead[rows[:, 0]] = True
    sentences = begin = 0
    while begin < size:
        end = begin
        while end < size and not classes[codes[end]] & BREAK:
            end += 1
        follows = end + 2 if end + 1 < size and codes[end] == 13 and codes[end + 1] == 10 else end + 1
        low, high = begin, end
        begin = follows
        while low < high and classes[codes[low]] & SPACE:
            low += 1
        while low < high and classes[codes[high - 1]] & SPACE:
            high -= 1
        words, longest = _words(codes, classes, low, high)
        if longest > max_length or words < min_words:
            continue
        length = _without_citations(codes, classes, citations, low, high, line)
        found = _find(line, length, lower, rows, flags, lead)
        if found & wanted & _LOREM:
            return 0
        if found & wanted & _JAVASCRIPT:
            continue
        if bracket:
            for position in range(length):
                if line[position] == _BRACE:
                    return 1
        if found & wanted & _POLICY:
            continue
        sentences += _sentences(line, length, classes)
    return 2 if sentences < min_sentences else -1


@njit(cache=True, nogil=True)
def _words(codes, classes, low, high):
    """(words between blanks, characters of the longest)."""
    words = longest = length = 0
    for position in range(low, high):
        if classes[codes[position]] & SPACE:
            length = 0
        else:
            length += 1
            words += length == 1
            longest = max(longest, length)
    return words, longest


@njit(cache=True, nogil=True)
def _without_citations(codes, classes, citations, low, high, line):
    """Copy codes[low:high] to `line` without `[12]`, `[edit]` and `[citation needed]`; returns the length."""
    length, position = 0, low
    while position < high:
        if codes[position] == _OPEN:
            after = position + 1
            while after < high and classes[codes[after]] & DIGIT:
                after += 1
            if after < high and codes[after] == _CLOSE:
                position = after + 1
                continue
            for mark in citations:
                width = 0
                while width < len(mark) and mark[width] and position + width < high and codes[position + width] == mark[width]:
                    width += 1
                if width == len(mark) or mark[width] == 0:
                    break
                width = 0
            if width:
                position += width
                continue
        line[length] = codes[position]
        length += 1
        position += 1
    return length


@njit(cache=True, nogil=True)
def _find(line, length, lower, rows, flags, lead):
    """The flags, or-ed, of the phrases that occur in line[:length], whatever the case."""
    found = 0
    for position in range(length):
        code = lower[line[position]]
        if code >= 128 or not lead[code]:
            continue
        for row in range(len(rows)):
            width = 0
            while (width < rows.shape[1] and rows[row, width] and position + width < length
                   and lower[line[position + width]] == rows[row, width]):
                width += 1
            if width == rows.shape[1] or rows[row, width] == 0:
                found |= flags[row]
    return found


@njit(cache=True, nogil=True)
def _sentences(line, length, classes):
    """Sentences in line[:length]; at least one."""
    sentences, state = 1, 0  # 0: inside; 1: after a stop; 2: after a stop and a blank; 3: after a full-width stop
    for position in range(length):
        code = line[position]
        class_ = classes[code]
        wide, stop = code in _WIDE, (class_ & TERMINAL) != 0
        if class_ & SPACE:
            state = 2 if state else 0
        elif (state == 3 or (state == 1 and not wide)) and (wide or stop or code in _CLOSING):
            pass
        else:
            sentences += state >= 2
            state = 3 if wide else int(stop)
    return sentences
