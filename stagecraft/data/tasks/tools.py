"""Single-step tool calls: one tool is offered, the user's request names its arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from stagecraft.data.tasks.task import Task
from stagecraft.data.tasks.words import CITIES, NAMES, NOUNS

Request = tuple[str, dict[str, Any]]


def tool(random: Random) -> Task:
    """A request for the tool on offer. Flawed: the key `args` where the schema wants `arguments`."""
    name, draw = random.choice(list(TOOLS.items()))
    request, arguments = draw(random)
    types = {key: {"type": "integer" if isinstance(value, int) else "string"} for key, value in arguments.items()}
    schema = {"type": "object", "properties": types, "required": list(types)}
    return Task(
        prompt=request,
        verifier={"kind": "tool_call", "name": name, "arguments": arguments},
        good=_call(name=name, arguments=arguments),
        flawed=_call(name=name, args=arguments),
        tools=({"type": "function", "function": {"name": name, "parameters": schema}},),
    )


def _pay(random: Random) -> Request:
    amount, name = random.randint(1, 999), random.choice(NAMES)
    return f"Pay {name} {amount}", {"to": name, "amount": amount}


def _weather(random: Random) -> Request:
    city, day, month = random.choice(CITIES), random.randint(1, 28), random.randint(1, 12)
    return f"Weather in {city} on {day}/{month}", {"city": city, "date": f"{day}/{month}"}


def _remind(random: Random) -> Request:
    item, hour, minute = random.choice(NOUNS), random.randint(0, 23), random.randrange(0, 60, 5)
    return f"Remind me of {item} at {hour}:{minute:02d}", {"text": item, "time": f"{hour}:{minute:02d}"}


def _buy(random: Random) -> Request:
    item, number = random.choice(NOUNS), random.randint(2, 99)
    return f"Buy {number} of {item}", {"item": item, "count": number}


TOOLS: dict[str, Callable[[Random], Request]] = {"pay": _pay, "weather": _weather, "remind": _remind, "buy": _buy}


def _call(**members: Any) -> str:
    return f"<think></think><tool_call>{json.dumps(members)}</tool_call>"
