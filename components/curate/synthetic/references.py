"""Second opinions for traced algorithms: each answer found another way, mostly by trying everything. Slow, short, and right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import combinations, pairwise, permutations
from typing import Any

_LONGEST, _LARGEST = 12, 10**6  # of a list or word; of a number


class UnknownReferenceError(ValueError):
    """There is no such reference, or the arguments are not for it."""


def reference(name: str, arguments: list[Any]) -> str:
    """The answer as an item states it: numbers in decimal, lists with ", " between the elements.

    Raises:
        UnknownReferenceError: no such function, or arguments that it cannot take, or too large ones.
    """
    if name not in REFERENCES or not isinstance(arguments, list) or not all(map(_small, arguments)):
        raise UnknownReferenceError(f"{name}({arguments})")
    try:
        found = REFERENCES[name](*arguments)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        raise UnknownReferenceError(f"{name}({arguments}): {error}") from None
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def _small(value: Any) -> bool:
    if isinstance(value, list | str):
        return len(value) <= _LONGEST * 2 and (isinstance(value, str) or all(map(_small, value)))
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _gcd(a: int, b: int) -> int:
    return max(divisor for divisor in range(1, max(a, b) + 1) if a % divisor == b % divisor == 0)


def _position(numbers: list[int], wanted: int) -> int:
    """Counted from 1; 0 if it is not there."""
    return next((place for place, value in enumerate(numbers, 1) if value == wanted), 0)


def _primes(limit: int) -> list[int]:
    if limit > 1000:
        raise ValueError("a large limit")
    return [n for n in range(2, limit + 1) if all(n % divisor for divisor in range(2, n))]


def _digits(number: int, base: int) -> str:
    """The numeral of `number`: the one string of digits whose value it is."""
    width = 1
    if not 2 <= base <= 9 or number < 0:
        raise ValueError("no such numeral")
    while base**width <= number:
        width += 1
    return "".join(str(number // base**place % base) for place in reversed(range(width)))


def _power(base: int, exponent: int, modulus: int) -> int:
    value = 1
    for _ in range(exponent):
        value = value * base % modulus
    return value


def _distance(edges: list[list[Any]], start: str, goal: str) -> int:
    """Length of the shortest path in an undirected graph of [one, two, length], over all orders of the nodes between."""
    length = {frozenset(edge[:2]): edge[2] for edge in edges}
    nodes = sorted({node for edge in edges for node in edge[:2]} - {start, goal})
    if len(nodes) > 6:
        raise ValueError("too many nodes")
    found = []
    for count in range(len(nodes) + 1):
        for between in permutations(nodes, count):
            path = [start, *between, goal]
            hops = [frozenset(pair) for pair in pairwise(path)]
            if all(hop in length for hop in hops):
                found.append(sum(length[hop] for hop in hops))
    return min(found)


def _fewest_coins(coins: list[int], amount: int) -> int:
    if min(coins) < 1 or amount > 300:
        raise ValueError("coins below 1 or a large amount")

    @cache
    def fewest(rest: int) -> float:
        return 0 if rest == 0 else min((1 + fewest(rest - coin) for coin in coins if coin <= rest), default=float("inf"))

    found = fewest(amount)
    if found == float("inf"):
        raise ValueError("the amount cannot be paid")
    return int(found)


def _largest_sum(numbers: list[int]) -> int:
    return max(sum(numbers[start:end]) for start, end in combinations(range(len(numbers) + 1), 2))


def _polynomial(coefficients: list[int], x: int) -> int:
    """Highest power first."""
    return sum(coefficient * x**power for power, coefficient in enumerate(reversed(coefficients)))


def _majority(values: list[str]) -> str:
    value, count = Counter(values).most_common(1)[0]
    if 2 * count <= len(values):
        raise ValueError("no majority")
    return value


def _common(one: str, two: str) -> int:
    """Length of the longest common subsequence."""
    if min(len(one), len(two)) > _LONGEST:
        raise ValueError("long words")

    def subsequences(word: str, size: int) -> set[tuple[str, ...]]:
        return set(combinations(word, size))

    return max(size for size in range(min(len(one), len(two)) + 1) if subsequences(one, size) & subsequences(two, size))


def _best_value(weights: list[int], values: list[int], capacity: int) -> int:
    """0/1 knapsack."""
    if len(weights) != len(values) or len(weights) > _LONGEST:
        raise ValueError("weights and values differ in number")
    chosen = (subset for size in range(len(weights) + 1) for subset in combinations(range(len(weights)), size))
    return max(sum(values[i] for i in subset) for subset in chosen if sum(weights[i] for i in subset) <= capacity)


REFERENCES: dict[str, Callable[..., Any]] = {
    "gcd": _gcd, "position": _position, "sort": sorted, "primes": _primes, "digits": _digits, "power": _power, "distance": _distance,
    "fewest_coins": _fewest_coins, "largest_sum": _largest_sum, "polynomial": _polynomial, "majority": _majority, "common": _common,
    "best_value": _best_value,
}
