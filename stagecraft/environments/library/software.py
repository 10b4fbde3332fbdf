"""A small repository with a failing test: the policy reads, edits and runs it with tools; hidden tests in the sandbox decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from stagecraft.environments.api import Environment, Item, LocalSession, Row, tool
from stagecraft.environments.reward import Reward
from stagecraft.environments.sandbox import call_confined
from stagecraft.environments.written import write_call

_TESTS = 6


@dataclass(frozen=True)
class Module:
    """A function of the repository: right, with a bug, an edit that is nearly a mend, and how its arguments are drawn."""

    head: str
    right: str
    bug: str
    half: str
    draw: Callable[[Random], list[Any]]
    value: Callable[..., Any]

    def source(self, body: str) -> str:
        """The module's text."""
        return f"def {self.head}:\n    {body}\n"


def _numbers(random: Random) -> list[int]:
    return [random.randint(0, 99) for _ in range(random.randint(3, 8))]


MODULES = {
    "discount": Module("discounted(price, percent)", "return price - price * percent // 100", "return price - percent",
                       "return price * percent // 100", lambda random: [random.randint(100, 999), random.randint(1, 90)],
                       lambda price, percent: price - price * percent // 100),
    "median": Module("median(values)", "return sorted(values)[len(values) // 2]", "return values[len(values) // 2]",
                     "return sorted(values)[len(values) // 2 - 1]", lambda random: [_numbers(random)],
                     lambda values: sorted(values)[len(values) // 2]),
    "leap": Module("is_leap(year)", "return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)", "return year % 4 == 0",
                   "return year % 4 == 0 and year % 100 != 0", lambda random: [random.randint(15, 25) * 100 + random.choice([0, 0, 4, 7])],
                   lambda year: year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)),
    "overlap": Module("overlap(a, b, c, d)", "return max(0, min(b, d) - max(a, c))", "return min(b, d) - max(a, c)",
                      "return abs(min(b, d) - max(a, c))",
                      lambda random: [*sorted(random.sample(range(30), 2)), *sorted(random.sample(range(30), 2))],
                      lambda a, b, c, d: max(0, min(b, d) - max(a, c))),
    "slug": Module("slug(title)", 'return "-".join(title.lower().split())', 'return title.lower().replace(" ", "-")',
                   'return "-".join(title.split())',
                   lambda random: [(" " * random.randint(1, 2)).join(random.sample(["Red", "Moon", "old", "Sea", "Ink"], 3))],
                   lambda title: "-".join(title.lower().split())),
}


class Software(Environment):
    """Hidden tests call every function of the repository: a mend that breaks another, or suits the shown test alone, scores 0."""

    name = "software"
    turns = 10
    confined = True
    _TOOLS = (tool("list_files", "The files of the repository."), tool("read_file", "A file's text.", path="string"),
              tool("replace", "Replace a text that occurs once in a file.", path="string", old="string", new="string"),
              tool("run_test", "Run the failing test."))

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        names = random.sample(list(MODULES), 3)
        broken = MODULES[names[0]]
        while True:
            calls = {name: [MODULES[name].draw(random) for _ in range(_TESTS)] for name in names}
            values = {name: [MODULES[name].value(*arguments) for arguments in calls[name]] for name in names}
            rivals = [[_run(broken, body, arguments) for arguments in calls[names[0]]] for body in (broken.bug, broken.half)]
            shown = _run(broken, broken.bug, calls[names[0]][0]) != values[names[0]][0]
            if shown and all(rival[1:] != values[names[0]][1:] for rival in rivals):
                break
        bodies = {name: MODULES[name].bug if name == names[0] else MODULES[name].right for name in sorted(names)}
        files = {f"{name}.py": MODULES[name].source(body) for name, body in bodies.items()}
        call = f"{broken.head.partition('(')[0]}({', '.join(map(repr, calls[names[0]][0]))})"
        files["test_repository.py"] = (f"from {names[0]} import *\n\n\ndef test_{names[0]}():\n"
                                       f"    assert {call} == {values[names[0]][0]!r}\n")
        return self.row("A test of this repository fails. Find the bug, mend it, and say done.", list(self._TOOLS), files=files,
                        broken=names[0], calls=calls, values=values)

    def seed(self, row: Row) -> LocalSession:
        """As in `Environment`."""
        return _Editing(row)

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        module = MODULES[row["broken"]]
        return [write_call("list_files"), write_call("read_file", path="test_repository.py"), *self._mended(row, module.right), "done"]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`: nothing done, half a mend, the shown value alone, the test edited, another function broken."""
        broken, module = row["broken"], MODULES[row["broken"]]
        other = next(name for name in row["calls"] if name != broken)
        shown, test = f"return {row['values'][broken][0]!r}", row["files"]["test_repository.py"]
        line = next(line for line in test.splitlines() if "assert" in line)
        right = self._mended(row, module.right)
        return [["done"], [*self._mended(row, module.half), "done"], [*self._mended(row, shown), "done"],
                [write_call("replace", path="test_repository.py", old=line, new="    pass"), "done"],
                [*right, write_call("replace", path=f"{other}.py", old=MODULES[other].right, new="return None"), "done"],
                [*self._mended(row, f"raise SystemExit\n    {module.right}"), "done"]]

    @staticmethod
    def _mended(row: Row, body: str) -> list[str]:
        return [write_call("replace", path=f"{row['broken']}.py", old=MODULES[row["broken"]].bug, new=body), write_call("run_test")]


class _Editing(LocalSession):
    """The repository lives in memory: paths are keys, so there is nothing to climb out of."""

    def __init__(self, row: Row):
        super().__init__(row["responses_create_params"]["tools"], {
            "list_files": lambda: sorted(self._files), "read_file": self._read, "replace": self._replace, "run_test": self._test})
        self._row, self._files = row, dict(row["files"])

    def _read(self, path: str) -> str:
        if path not in self._files:
            raise ValueError(f"there is no file {path!r}")
        return self._files[path]

    def _replace(self, path: str, old: str, new: str) -> str:
        if (times := self._read(path).count(old)) != 1:
            raise ValueError(f"the text occurs {times} times in {path}")
        self._files[path] = self._files[path].replace(old, new)
        return "replaced"

    def _test(self) -> str:
        (answer,), reason = call_confined(self._files, "test_repository", f"test_{self._row['broken']}", [[]])
        return "passed" if answer == {"value": None} else f"failed: {reason or (answer or {}).get('raised')}"

    def verify(self, output: list[Item]) -> Reward:
        passed = {name: self._hidden(name) for name in self._row["calls"]}
        mended, kept = passed.pop(self._row["broken"]), sum(passed.values()) / len(passed)
        return Reward(float(mended == kept == 1), {"mended": mended, "kept": kept, "correct": float(mended == kept == 1)})

    def _hidden(self, name: str) -> float:
        """Share of the hidden tests of a module that pass."""
        function = MODULES[name].head.partition("(")[0]
        found, _ = call_confined(self._files, name, function, self._row["calls"][name])
        return sum(each == {"value": value} for each, value in zip(found, self._row["values"][name])) / _TESTS


def _run(module: Module, body: str, arguments: list[Any]) -> Any:
    """What a body of ours gives."""
    names: dict[str, Any] = {}
    exec(module.source(body), names)
    return names[module.head.partition("(")[0]](*arguments)
