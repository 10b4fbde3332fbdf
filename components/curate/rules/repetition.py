"""Gopher's repetition rules (Rae et al. 2021, arXiv 2112.11446, A1.1 and table A1): how much of the text says the same again?"""

# ruff: noqa: ANN001, ANN201 - the compiled functions take arrays and scalars, not Python objects

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit

from components.curate.rules.bounds import RuleBounds
from stagecraft.data.scan import BASE, SPACE, Scan, character_classes, mix

_NAMES = ("empty", "dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac")


def failed(scanned: Scan, bounds: RuleBounds) -> str | None:
    """The first of the rules that the text breaks, or None."""
    names, limits, tops, duplicates = _compiled(bounds)
    index = _check(scanned.codes, character_classes(), scanned.line_start, scanned.line_end, scanned.line_hash, limits)
    if index < 0:
        index = _check_grams(len(scanned.codes), scanned.token_start, scanned.token_end, scanned.token_polynomial, tops, duplicates, limits)
    return None if index < 0 else f"repetition_{names[index]}"


@lru_cache
def _compiled(bounds: RuleBounds) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    tops, duplicates = bounds.repetition_top_grams, bounds.repetition_duplicate_grams
    names = (*_NAMES, *(f"top_{n}_gram" for n, _ in tops), *(f"dup_{n}_gram" for n, _ in duplicates))
    limits = (0.0, bounds.repetition_max_duplicate_paragraphs, bounds.repetition_max_duplicate_paragraph_characters,
              bounds.repetition_max_duplicate_lines, bounds.repetition_max_duplicate_line_characters,
              *(share for _, share in tops), *(share for _, share in duplicates))
    return names, np.array(limits), np.array([n for n, _ in tops], np.int64), np.array([n for n, _ in duplicates], np.int64)


@njit(cache=True, nogil=True)
def _check(codes, classes, line_start, line_end, line_hash, limits):
    """Index of the first broken rule in _NAMES, or -1."""
    size = len(codes)
    if size == 0:
        return 0
    keys, lengths = _paragraphs(codes, classes)
    count, characters = duplicates(keys, lengths)
    if count / len(keys) > limits[1]:
        return 1
    if characters / size > limits[2]:
        return 2
    # Split at runs of newlines: no empty line, but for one before the first newline and one after the last.
    edges = int(codes[0] == 10) + int(codes[size - 1] == 10)
    filled = line_end > line_start
    lengths = (line_end - line_start)[filled]
    count, characters = duplicates(line_hash[filled], lengths)
    if (count + (edges == 2)) / (len(lengths) + edges) > limits[3]:
        return 3
    if characters / size > limits[4]:
        return 4
    return -1


@njit(cache=True, nogil=True)
def _paragraphs(codes, classes):
    """(hashes, lengths) of what lies between runs of two or more newlines in the stripped text."""
    low, high = 0, len(codes)
    while low < high and classes[codes[low]] & SPACE:
        low += 1
    while low < high and classes[codes[high - 1]] & SPACE:
        high -= 1
    count = 1
    for position in range(low + 1, high):
        count += codes[position] == 10 and codes[position - 1] == 10
    keys, lengths = np.empty(count, np.uint64), np.empty(count, np.int32)
    found, hash_, begin, position = 0, np.uint64(0), low, low
    while True:
        if position == high or (codes[position] == 10 and codes[position + 1] == 10):  # never the last: the text is stripped
            keys[found], lengths[found] = mix(hash_), position - begin
            found += 1
            if position == high:
                break
            while codes[position] == 10:
                position += 1
            begin, hash_ = position, np.uint64(0)
        else:
            hash_ = hash_ * BASE + np.uint64(codes[position]) + np.uint64(1)
            position += 1
    return keys[:found], lengths[:found]


@njit(cache=True, nogil=True)
def _check_grams(size, start, end, polynomial, tops, repeats, limits):
    """Index of the first broken n-gram rule, counted after _NAMES, or -1."""
    tokens = len(start)
    length = end - start
    table = np.empty(_capacity(tokens), np.uint64)
    first, counts = np.empty(len(table), np.int32), np.empty(len(table), np.int32)
    rule = 5
    for n in tops:
        if n <= tokens and _top(polynomial, length, n, table, first, counts) / size > limits[rule]:
            return rule
        rule += 1
    longest = 0
    for token in range(tokens):
        longest = max(longest, length[token])
    powers = np.empty(longest + 1, np.uint64)
    powers[0] = 1
    for exponent in range(1, longest + 1):
        powers[exponent] = powers[exponent - 1] * BASE
    grams, width = polynomial.copy(), 1
    for n in repeats:
        if n < width:
            grams, width = polynomial.copy(), 1
        while width < min(n, tokens):
            for token in range(tokens - width):
                grams[token] = grams[token] * powers[length[token + width]] + polynomial[token + width]
            width += 1
        if n <= tokens and _repeated(grams, length, n, table) / size > limits[rule]:
            return rule
        rule += 1
    return -1


@njit(cache=True, nogil=True)
def _top(polynomial, length, n, table, first, counts):
    """Characters in all occurrences of the most frequent n-gram (of equals the earliest), blanks between words counted."""
    table[:] = 0
    best = best_count = -1
    for token in range(len(length) - n + 1):
        key = np.uint64(0)
        for word in range(token, token + n):
            key = key * BASE + mix(polynomial[word])
        slot, new = _insert(table, mix(key))
        if new:
            first[slot], counts[slot] = token, 0
        counts[slot] += 1
        if counts[slot] > best_count or (counts[slot] == best_count and first[slot] < best):
            best, best_count = first[slot], counts[slot]
    return (length[best:best + n].sum() + n - 1) * best_count


@njit(cache=True, nogil=True)
def _repeated(grams, length, n, table):
    """Characters in n-grams that occurred before, none counted twice. n-grams are equal if they are without blanks."""
    table[:] = 0
    characters = token = 0
    while token <= len(length) - n:
        if _insert(table, mix(grams[token]))[1]:
            token += 1
        else:
            for word in range(token, token + n):
                characters += length[word]
            token += n
    return characters


@njit(cache=True, nogil=True)
def duplicates(keys, lengths):
    """(number, summed length) of the keys (uint64 hashes) that occurred before."""
    table = np.zeros(_capacity(len(keys)), np.uint64)
    count = total = 0
    for index in range(len(keys)):
        if not _insert(table, keys[index])[1]:
            count += 1
            total += lengths[index]
    return count, total


@njit(cache=True, nogil=True)
def _capacity(keys):
    capacity = 8
    while capacity < 2 * keys:
        capacity *= 2
    return capacity


@njit(cache=True, nogil=True)
def _insert(table, key):
    """(slot of the key, whether it is new) in an open-addressing table in which 0 is an empty slot."""
    key = max(key, np.uint64(1))
    mask = np.uint64(len(table) - 1)
    slot = key & mask
    while table[slot] != 0:
        if table[slot] == key:
            return slot, False
        slot = (slot + np.uint64(1)) & mask
    table[slot] = key
    return slot, True
