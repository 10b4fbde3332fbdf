"""Code generation with hidden tests: the function that is asked for is called in the sandbox, its values are compared outside."""

from __future__ import annotations

from random import Random
from typing import Any

from stagecraft.environments.api import Row
from stagecraft.environments.library.single import SingleTurn
from stagecraft.environments.sandbox import call_confined
from stagecraft.environments.written import code_of

_KEPT = {"even": "x % 2 == 0", "odd": "x % 2 != 0", "positive": "x > 0", "negative": "x < 0"}
_MADE = {"": "x", "the squares of ": "x * x", "the doubles of ": "2 * x", "the absolute values of ": "abs(x)"}
_ENDS = {"the sum of": ("sum({})", sum), "how many different values are among": ("len(set({}))", lambda values: len(set(values))),
         "the list, in ascending order, of": ("sorted({})", sorted), "the largest, or 0 if there is none, of": (
             "max({}, default=0)", lambda values: max(values, default=0))}
_TESTS = 6


class Code(SingleTurn):
    """A Python function `f` of a list of integers. The expected values never enter the sandbox, and one example is told."""

    name = "code"
    confined = True

    def draw(self, random: Random) -> Row:
        """As in `Environment`: no other function of the kind passes the hidden tests."""
        kept, made, end = random.choice(list(_KEPT)), random.choice(list(_MADE)), random.choice(list(_ENDS))
        rivals = [(other, made, end) for other in _KEPT if other != kept] + [(kept, made, other) for other in _ENDS if other != end]
        while True:
            calls = [[[random.randint(-9, 9) for _ in range(random.randint(4, 9))]] for _ in range(_TESTS)]
            values = [_value(kept, made, end, numbers) for numbers, in calls]
            if all([_value(*rival, numbers) for numbers, in calls] != values for rival in rivals):
                break
        asked = (f"Write a Python function f(numbers) that gives {end} {made}the {kept} ones among the integers in the list. "
                 f"For example, f({calls[0][0]}) is {values[0]}.")
        return self.row(asked, expected={"calls": calls, "values": values, "source": [kept, made, end]})

    def judge(self, expected: Any, answer: str) -> dict[str, float]:
        """As in `SingleTurn`. Where there is no sandbox nothing is run and nothing scores."""
        found, reason = call_confined({"answer.py": code_of(answer)}, "answer", "f", expected["calls"])
        passed = [each == {"value": value} and type(each["value"]) is type(value) for each, value in zip(found, expected["values"])]
        return {"ran": float(reason is None), "passed": sum(passed) / len(passed), "correct": float(all(passed))}

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [_fenced(_source(*row["expected"]["source"]))]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`: a rival, the told example alone, an early end, a value that claims to equal everything."""
        kept, made, end = row["expected"]["source"]
        rival = next(other for other in _KEPT if other != kept)
        told = row["expected"]["calls"][0][0], row["expected"]["values"][0]
        table = f"def f(numbers):\n    return {{{tuple(told[0])}: {told[1]}}}[tuple(numbers)]"
        return [[_fenced(_source(rival, made, end))], [_fenced(table)], [_fenced("import os\nos._exit(0)")],
                [_fenced("def g(numbers):\n    return 0")], ["I cannot."],
                [_fenced("class Same(int):\n    def __eq__(self, other):\n        return True\ndef f(numbers):\n    return Same()")]]


def _value(kept: str, made: str, end: str, numbers: list[int]) -> Any:
    return _ENDS[end][1]([eval(_MADE[made], {"x": x, "abs": abs}) for x in numbers if eval(_KEPT[kept], {"x": x})])


def _source(kept: str, made: str, end: str) -> str:
    return f"def f(numbers):\n    return {_ENDS[end][0].format(f'[{_MADE[made]} for x in numbers if {_KEPT[kept]}]')}"


def _fenced(code: str) -> str:
    return f"```python\n{code}\n```"
