"""Passages that occur more than once: planted, brute force, and any order, sharding or memory."""

import re
import resource
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.dedup.substrings import cut, find_repeated

MEMORY = 10**8
WIDTH = 4
SMALL = st.lists(st.lists(st.sampled_from(["a", "b", "c", "a\n", "b.", "--", "é\n\n", "  c"]), max_size=25).map(" ".join), max_size=6)


def tokens(text: str) -> list[str]:
    return [match.group() for match in re.finditer(r"\w+|([^\w\s])\1*", text)]


def run(texts: list[str], width: int, scratch, ids: list[int] | None = None, memory: int = MEMORY) -> dict[int, list[tuple[int, int]]]:
    ids = list(range(len(texts))) if ids is None else ids
    ranks = np.empty(len(texts), np.int64)
    ranks[np.argsort(ids)] = np.arange(len(texts))
    found = find_repeated(lambda: enumerate(texts), ranks, sum(len(text.encode()) for text in texts), width, memory, scratch)
    assert not list(scratch.iterdir())
    return {index: each.spans for index, each in found.items()}


def occurrences(texts: list[str], width: int) -> dict[tuple[str, ...], list[tuple[int, int]]]:
    """Run of tokens -> (text, first token) of its occurrences."""
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
    for index, text in enumerate(texts):
        words = tokens(text)
        for place in range(len(words) - width + 1):
            places.setdefault(tuple(words[place:place + width]), []).append((index, place))
    return places


def brute_force(texts: list[str], width: int) -> dict[int, set[int]]:
    """Tokens of later occurrences that belong to no first one, by the definition; the order of the texts is that of their ids."""
    first, later = set(), set()
    for found in occurrences(texts, width).values():
        for number, (index, place) in enumerate(found) if len(found) > 1 else ():
            (later if number else first).update((index, place + step) for step in range(width))
    cuts: dict[int, set[int]] = {}
    for index, place in later - first:
        cuts.setdefault(index, set()).add(place)
    return cuts


@settings(max_examples=200, deadline=None)
@given(texts=SMALL, data=st.data())
def test_as_brute_force_in_any_order_and_memory(tmp_path_factory, texts, data):
    scratch = tmp_path_factory.mktemp("scratch")
    expected = brute_force(texts, WIDTH)
    order = data.draw(st.permutations(range(len(texts))))
    found = run([texts[index] for index in order], WIDTH, scratch, list(order), data.draw(st.sampled_from([200, 1000, MEMORY])))
    assert {order[index]: {place for start, end in spans for place in range(start, end)} for index, spans in found.items()} == expected
    for index, spans in found.items():
        text = texts[order[index]]
        left = cut(text, spans)
        assert tokens(left) == [token for place, token in enumerate(tokens(text)) if place not in expected[order[index]]]
        assert not re.search(r"[ \t]$|\n{4}", left, re.MULTILINE)
    for places in occurrences(texts, WIDTH).values():
        whole = [not expected.get(index, set()) & set(range(place, place + WIDTH)) for index, place in places]
        assert len(places) == 1 or whole[0]


def words_of(random: Random, count: int) -> list[str]:
    return ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(count)]


@pytest.mark.parametrize("length", [49, 50, 51, 200])
def test_planted_passages_are_cut_but_once_from_fifty_tokens_on_and_never_below(tmp_path, length):
    random = Random(length)
    texts, planted = [], []
    for _ in range(40):
        passage = words_of(random, length)
        pair = [[*words_of(random, random.randint(0, 300)), *passage, *words_of(random, random.randint(0, 300))] for _ in range(3)]
        planted += [" ".join(passage)] * 3
        texts += [" ".join(words) for words in pair]
    found = run(texts, 50, tmp_path)
    left = [cut(text, found[index]) if index in found else text for index, text in enumerate(texts)]
    holds = [passage in text for passage, text in zip(planted, left)]
    assert holds == ([True, False, False] * 40 if length >= 50 else [True] * 120)
    removed = sum(len(tokens(text)) for text in texts) - sum(len(tokens(text)) for text in left)
    assert removed == (80 * length if length >= 50 else 0)  # all of it and nothing else


def test_more_parts_than_files_may_be_open(tmp_path):
    random = Random(3)
    passage = words_of(random, 60)
    texts = [" ".join([*words_of(random, 40), *passage, *words_of(random, 40)]) for _ in range(20)]
    expected = run(texts, 50, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 20, limits[1]))
    try:
        assert run(texts, 50, tmp_path, memory=1000) == expected and len(expected) == 19
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_what_is_left_are_whole_words_and_lines():
    text = "First line.\n    if a:\n        drop = all of\n        this here\nlast  line drop end\n"
    assert cut(text, [(6, 12)]) == "First line.\n    if a:\nlast  line drop end\n"
    assert cut(text, [(5, 6)]) == "First line.\n    if a\n        drop = all of\n        this here\nlast  line drop end\n"
    assert cut(text, [(14, 15)]) == text.replace("drop end", "end")
    assert cut(text, [(1, 6)]) == "First\n        drop = all of\n        this here\nlast  line drop end\n"
    assert cut(text, [(1, 7)]) == "First\n= all of\n        this here\nlast  line drop end\n"
    assert cut(text, [(0, 1)]) == text.removeprefix("First ")
    assert cut(text, [(0, 3), (3, 6)]) == text.split("\n", 2)[2].lstrip("\n")


def test_a_collision_of_hashes_cuts_nothing(tmp_path, monkeypatch):
    from components.curate.dedup import substrings

    monkeypatch.setattr(substrings, "_runs", lambda words, width: np.arange(max(len(words) - width + 1, 0)).astype(np.uint64))
    one, two = (" ".join(words_of(Random(seed), 60)) for seed in range(2))
    assert run([one, two], 50, tmp_path) == {}
    assert run([one, one], 50, tmp_path) == {1: [(0, 60)]}
