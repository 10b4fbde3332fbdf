"""Inputs for the functions that code documents are about, and parts of the other ways to their values."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

Arguments = tuple[Any, ...]


def numbers(random: Random, low: int = -9, high: int = 30, least: int = 3, most: int = 8) -> list[int]:
    """A few whole numbers."""
    return [random.randint(low, high) for _ in range(random.randint(least, most))]


def word(random: Random, least: int = 3, most: int = 9, letters: str = "abcdeimnorst") -> str:
    """A few letters."""
    return "".join(random.choices(letters, k=random.randint(least, most)))


def mirrored(random: Random) -> str:
    """A palindrome more often than not."""
    half = word(random, 2, 4)
    return half + random.choice(("", "x")) + half[::-1] if random.random() < 0.6 else half + word(random)


def nested(random: Random, depth: int = 3) -> list[Any]:
    """A list of numbers and of such lists."""
    return [nested(random, depth - 1) if depth > 1 and random.random() < 0.4 else random.randint(0, 20)
            for _ in range(random.randint(1, 4))]


def list_and_ranges(random: Random) -> Arguments:
    """Numbers, and two ranges of their places."""
    values = numbers(random, least=4)
    return values, [tuple(sorted(random.choices(range(len(values) + 1), k=2))) for _ in range(2)]


def grid(random: Random) -> Arguments:
    """Up to three rows of up to three digits."""
    width, height = random.randint(1, 3), random.randint(1, 3)
    return ([[random.randint(0, 9) for _ in range(width)] for _ in range(height)],)


def flat(value: Any) -> list[int]:
    """The numbers of a nested list, read from how it is written."""
    return [int(each) for each in str(value).replace("[", " ").replace("]", " ").replace(",", " ").split()]


def balanced(text: str) -> bool:
    """Whether taking pairs away leaves nothing."""
    while "()" in text or "[]" in text:
        text = text.replace("()", "").replace("[]", "")
    return not text


class Graph(dict[int, list[int]]):
    """Written as a call, so that documents hold no braces, which some filters take for markup."""

    def __repr__(self) -> str:
        return f"dict({list(self.items())!r})"


def layers(graph: dict[int, list[int]], start: int) -> list[set[int]]:
    """What is reached after 0, 1, 2, ... links, whatever the route."""
    found = [{start}]
    for _ in graph:
        found.append({other for node in found[-1] for other in graph.get(node, [])})
    return found


def binomial(n: int, k: int) -> int:
    """Binomial coefficient from Pascal's triangle."""
    row = [1]
    for _ in range(n):
        row = [1, *(a + b for a, b in pairwise(row)), 1]
    return row[k]
