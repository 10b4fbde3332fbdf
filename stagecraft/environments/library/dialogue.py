"""A dialogue: the environment answers, and what it answers is needed."""

from __future__ import annotations

import re
from random import Random

from stagecraft.environments.api import Environment, Item, LocalSession, Row
from stagecraft.environments.reward import Reward

_BITS = 5


class Guess(Environment):
    """A number is to be found; to each guess the answer is `higher` or `lower`. Halving finds it in the turns there are."""

    name = "guess"
    turns = _BITS

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        return self.row(f"I think of a number from 1 to {2**_BITS - 1}. Guess it; I say higher or lower. You have {_BITS} guesses. "
                        "Answer with a number alone.", expected=random.randint(1, 2**_BITS - 1))

    def seed(self, row: Row) -> LocalSession:
        """As in `Environment`."""
        return _Guessing(row["expected"])

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`: halving."""
        low, high, said = 1, 2**_BITS - 1, []
        while not said or said[-1] != row["expected"]:
            said.append((low + high) // 2)
            low, high = (said[-1] + 1, high) if row["expected"] > said[-1] else (low, said[-1] - 1)
        return [str(number) for number in said]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`."""
        wrong = str(row["expected"] % (2**_BITS - 1) + 1)
        return [[wrong] * _BITS, [wrong] * _BITS + [str(row["expected"])], [f"{row['expected']} or {wrong}"] * _BITS, [""] * _BITS]


class _Guessing(LocalSession):
    def __init__(self, number: int):
        super().__init__()
        self._number, self._guesses, self._found = number, 0, False

    def reply(self, text: str) -> str | None:
        self._guesses += 1
        given = re.fullmatch(r"\s*([0-9]{1,3})\s*", text)
        self._found = given is not None and int(given[1]) == self._number
        if self._found or self._guesses == _BITS:
            return None
        if given is None:
            return "That is no number."
        return "higher" if int(given[1]) < self._number else "lower"

    def verify(self, output: list[Item]) -> Reward:
        return Reward(float(self._found), {"correct": float(self._found), "guesses_left": (_BITS - self._guesses) / _BITS})
