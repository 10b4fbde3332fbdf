"""What held-out documents share with those trained on: brute force, any order and memory, and planted passages."""

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.dedup.overlap import find_overlaps
from stagecraft.data.decontamination import GRAM

LINES = st.lists(st.lists(st.sampled_from(["a", "B", "c,", "--"]), max_size=12).map(" ".join), max_size=8).map("\n".join)


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def runs(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[at:at + GRAM]) for at in range(len(found) - GRAM + 1)}


def lines_shared(text: str, others: set[tuple[str, ...]]) -> list[bool]:
    """By the definition: which lines have a word of a run that the others have."""
    lines = text.split("\n")
    owner = [number for number, line in enumerate(lines) for _ in words(line)]
    found = words(text)
    shared = [False] * len(lines)
    for at in range(len(found) - GRAM + 1):
        if tuple(found[at:at + GRAM]) in others:
            for word in range(at, at + GRAM):
                shared[owner[word]] = True
    return shared


def longest(text: str, shared: list[bool]) -> int:
    best = here = -1
    for line, bad in zip(text.split("\n"), shared):
        here = -1 if bad else here + 1 + len(line)
        best = max(best, here)
    return max(best, 0)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(LINES, max_size=5), others=st.lists(LINES, max_size=4), memory=st.sampled_from([1, 2000, 10**8]), data=st.data())
def test_as_brute_force_in_any_order_and_memory(texts, others, memory, data):
    order = data.draw(st.permutations(range(len(others))))
    found = find_overlaps(enumerate(texts), lambda: ((number, others[number]) for number in order), memory, 2)
    everything = set().union(*map(runs, others))
    for index, text in enumerate(texts):
        shared = lines_shared(text, everything)
        assert (index in found) == any(shared)
        if index in found:
            overlap = found[index]
            left = text[overlap.start:overlap.end]
            assert overlap.lines == sum(shared) and len(left) == longest(text, shared)
            assert not runs(left) & everything and f"\n{left}\n" in f"\n{text}\n\n"
            assert overlap.other == min(number for number, other in enumerate(others) if runs(other) & runs(text))
            assert tuple(words(overlap.passage)) in runs(others[overlap.other]) & runs(text)


@pytest.mark.parametrize("length", [12, 13, 14, 60])
def test_planted_passages_are_found_from_thirteen_words_on(length):
    random = Random(length)
    texts, others = ([[f"{name}{number}w{word}" for word in range(300)] for number in range(50)] for name in "ab")
    for text, other in zip(texts, others):
        passage = [f"p{random.randrange(10**9)}" for _ in range(length)]
        for place in (text, other):
            at = random.randrange(len(place))
            place[at:at] = passage
    found = find_overlaps(enumerate(map(" ".join, texts)), lambda: enumerate(" ".join(each).upper() for each in others), 10**8, 1)
    expected = {number: number for number in range(50)} if length >= GRAM else {}
    assert {index: overlap.other for index, overlap in found.items()} == expected


def test_nothing_and_short_texts_share_nothing():
    assert find_overlaps([], lambda: enumerate(["a " * 50]), 100, 1) == {}
    assert find_overlaps(enumerate(["", "a b c"]), lambda: enumerate(["", "a b c", "a " * 50]), 100, 1) == {}
