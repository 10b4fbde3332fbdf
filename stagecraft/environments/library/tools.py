"""Calls of tools: one, compared by its arguments, and several over a small world that they change."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from stagecraft.data.tasks.families import FAMILIES
from stagecraft.data.tasks.words import NOUNS
from stagecraft.environments.api import Environment, Item, LocalSession, Row, tool
from stagecraft.environments.items import calls_of, last_message
from stagecraft.environments.reward import Reward
from stagecraft.environments.written import write_call


class ToolCall(Environment):
    """One call is asked for: the right tool, the right arguments as JSON values, and nothing said beside it."""

    name = "tool_call"

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        task = FAMILIES["tool"](random)
        tools = [{"type": "function", "description": "", "strict": True, **each["function"]} for each in task.tools]
        return self.row(task.prompt, tools, expected={"name": task.verifier["name"], "arguments": task.verifier["arguments"]})

    def seed(self, row: Row) -> LocalSession:
        """As in `Environment`."""
        return _OneCall(row)

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [write_call(row["expected"]["name"], **row["expected"]["arguments"])]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`."""
        name, arguments = row["expected"]["name"], row["expected"]["arguments"]
        (key, value), *rest = arguments.items()
        right = write_call(name, **arguments)
        return [[write_call(name + "s", **arguments)], [write_call(name, **dict(rest))], [write_call(name, **{**arguments, key: [value]})],
                [write_call(name, **{**arguments, "note": ""})], [right + right], [f"Done. {right}"], ["Done."]]


class _OneCall(LocalSession):
    def __init__(self, row: Row):
        super().__init__(row["responses_create_params"]["tools"], {row["expected"]["name"]: lambda **_: "done"})
        self._expected = row["expected"]

    def verify(self, output: list[Item]) -> Reward:
        calls = calls_of(output)
        one = len(calls) == 1 and not last_message(output)
        name = one and calls[0]["name"] == self._expected["name"]
        arguments = name and _same(calls[0]["arguments"], self._expected["arguments"])
        return Reward(float(arguments), {"one_call": float(one), "name": float(name), "correct": float(arguments)})


class Warehouse(Environment):
    """Goods in rooms: look, carry, and say how much is there in the end. Judged is the world, not the way."""

    name = "warehouse"
    turns = 8
    _TOOLS = (tool("look", "What a room holds.", room="string"),
              tool("carry", "Carry things from a room to another.", item="string", count="integer", origin="string", target="string"))

    def draw(self, random: Random) -> Row:
        """As in `Environment`."""
        rooms, items = random.sample(["hall", "attic", "cellar", "shed"], 3), random.sample(NOUNS, 3)
        held = {room: {item: random.randint(1, 9) for item in items} for room in rooms}
        item, (*origins, target) = random.choice(items), rooms
        asked = (f"Carry all of {item} from the {origins[0]} and the {origins[1]} to the {target}. "
                 "Then say how many are there, the number alone.")
        return self.row(asked, list(self._TOOLS), world=held, item=item, origins=origins, target=target)

    def seed(self, row: Row) -> LocalSession:
        """As in `Environment`."""
        return _World(row)

    def reference(self, row: Row) -> list[str]:
        """As in `Environment`."""
        return [*(write_call("look", room=room) for room in row["origins"]), *self._carried(row), str(_total(row))]

    def near_misses(self, row: Row) -> list[list[str]]:
        """As in `Environment`."""
        first, second, total = *self._carried(row), str(_total(row))
        more = write_call("carry", item=row["item"], count=1, origin=row["target"], target=row["origins"][0])
        too_many = write_call("carry", item=row["item"], count=99, origin=row["origins"][0], target=row["target"])
        return [[total], [first, total], [first, second, str(_total(row) + 1)], [first, second, more, total], [too_many, second, total],
                [first, second, ""]]

    @staticmethod
    def _carried(row: Row) -> list[str]:
        return [write_call("carry", item=row["item"], count=row["world"][room][row["item"]], origin=room, target=row["target"])
                for room in row["origins"]]


class _World(LocalSession):
    def __init__(self, row: Row):
        super().__init__(row["responses_create_params"]["tools"], {"look": self._look, "carry": self._carry})
        self._row = row
        self._held = {room: dict(items) for room, items in row["world"].items()}

    def _look(self, room: str) -> dict[str, int]:
        if room not in self._held:
            raise ValueError(f"there is no room {room!r}")
        return self._held[room]

    def _carry(self, item: str, count: int, origin: str, target: str) -> str:
        there, here = self._look(origin), self._look(target)
        if not 0 < count <= there.get(item, 0):
            raise ValueError(f"the {origin} holds {there.get(item, 0)} of {item}")
        there[item] -= count
        here[item] = here.get(item, 0) + count
        return "carried"

    def verify(self, output: list[Item]) -> Reward:
        row = self._row
        wanted = {room: {**items, row["item"]: 0 if room in row["origins"] else _total(row)} for room, items in row["world"].items()}
        world, said = self._held == wanted, last_message(output).strip() == str(_total(row))
        return Reward(float(world and said), {"world": float(world), "said": float(said), "correct": float(world and said)})


def _total(row: Row) -> int:
    return sum(items[row["item"]] for items in row["world"].values())


def _same(left: Any, right: Any) -> bool:
    """Equal as JSON values: 1 is neither "1" nor true."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
