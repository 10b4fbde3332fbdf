"""A needle in a long context: one person's code among those of others, in text that says nothing."""

from __future__ import annotations

from random import Random
from typing import Any

from stagecraft.data.tasks.words import NAMES, NOUNS
from stagecraft.environments.api import Row
from stagecraft.environments.library.single import SingleTurn

_LENGTHS = (60, 120, 480, 1920)  # words of the haystack
_OTHERS = 5


class Needle(SingleTurn):
    """The code of a person. Naming codes of others beside it is no answer."""

    name = "needle"

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        names = random.sample(NAMES, _OTHERS + 1)
        codes = [str(code) for code in random.sample(range(1000, 10000), _OTHERS + 1)]
        hay = [f"The {a} is near the {b}." for a, b in (random.sample(NOUNS, 2) for _ in range(random.choice(_LENGTHS) // 6))]
        for name, code in zip(names, codes):
            hay.insert(random.randint(0, len(hay)), f"The code of {name} is {code}.")
        asked = f"{' '.join(hay)}\nWhat is the code of {names[0]}? Answer with the code alone."
        return self.row(asked, expected={"code": codes[0], "others": codes[1:]})

    def judge(self, expected: Any, answer: str) -> dict[str, float]:
        """As in `SingleTurn`."""
        said = answer.split()
        return {"found": float(expected["code"] in answer), "exclusive": float(not any(code in answer for code in expected["others"])),
                "correct": float(said == [expected["code"]])}

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [row["expected"]["code"]]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`."""
        code, other = row["expected"]["code"], row["expected"]["others"][0]
        return [[other], [f"{code} {other}"], [code[:-1]], [""]]
