"""What an environment is: NeMo Gym's rows, and its contract of seed, tools and verify (nemo-gym 0.4.0, `SimpleResourcesServer`).

A row is a JSON object: `responses_create_params` is what the policy is asked (`input`, a list of messages, and `tools`, as the Responses
API has them), `environment` names who judges it, the rest is what that one needs. A conversation begins with `seed`, which gives a
session; tools change the session; `verify` judges it with all that the policy put out (`output`, a list of Responses API items).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, ClassVar, Protocol

from jsonschema import Draft202012Validator

from stagecraft.environments.reward import Reward

Row = dict[str, Any]
Item = dict[str, Any]
Tool = Callable[..., Any]


class InvalidCallError(Exception):
    """There is no such tool, or its schema does not allow the arguments. The message is what the policy is answered."""


class Session(Protocol):
    """One conversation under way, in this process or behind HTTP."""

    def call(self, tool: str, arguments: Any) -> str:
        """What a tool answers, as text; what it could not do is an answer too, {"error": ...}.

        Raises:
            InvalidCallError: the call never reached a tool.
        """

    def reply(self, text: str) -> str | None:
        """What the user says to a message without a call; None if the conversation ends with it."""

    def verify(self, output: list[Item]) -> Reward:
        """Judge the conversation by all items the policy and the tools put out."""


class Seeds(Protocol):
    """Where sessions come from: an environment of this package, or a resource server."""

    def seed(self, row: Row) -> Session:
        """Begin a conversation for a row."""


class Environment(ABC):
    """Draws rows, begins sessions, and knows a solution of every row it draws."""

    name: ClassVar[str]
    turns: ClassVar[int] = 1  # of the policy, at most
    confined: ClassVar[bool] = False  # runs what the policy wrote, for which it takes a sandbox

    @abstractmethod
    def draw(self, random: Random) -> Row:
        """A row; equal generators draw equal rows."""

    @abstractmethod
    def seed(self, row: Row) -> Session:
        """Begin a conversation for a row."""

    @abstractmethod
    def reference(self, row: Row) -> list[str]:
        """What a perfect policy says, turn by turn: reward 1."""

    @abstractmethod
    def near_misses(self, row: Row) -> list[list[str]]:
        """Conversations that are nearly right: reward below 1."""

    def row(self, prompt: str | list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, **more: Any) -> Row:
        """A row of this environment."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return {"responses_create_params": {"input": messages, "tools": tools or []}, "environment": self.name, **more}


class LocalSession:
    """A session in this process. Subclasses give it tools, state and a judgement.

    Args:
        tools: of the row, in the Responses API's form; a call that their schemas do not allow never reaches `handlers`.
        handlers: tool name -> what it does with the arguments.
    """

    def __init__(self, tools: list[dict[str, Any]] | None = None, handlers: Mapping[str, Tool] | None = None):
        self._schemas = {tool["name"]: Draft202012Validator(tool["parameters"]) for tool in tools or []}
        self._handlers = handlers or {}

    def call(self, tool: str, arguments: Any) -> str:
        """As in `Session`."""
        if tool not in self._handlers or tool not in self._schemas:
            raise InvalidCallError(json.dumps({"error": f"there is no tool {tool!r}"}))
        error = next(iter(self._schemas[tool].iter_errors(arguments)), None)
        if error is not None:
            raise InvalidCallError(json.dumps({"error": error.message[:200]}))
        try:
            return json.dumps(self._handlers[tool](**arguments))
        except ValueError as problem:
            return json.dumps({"error": str(problem)})

    def reply(self, text: str) -> str | None:
        """As in `Session`: nobody answers."""
        return None

    def verify(self, output: list[Item]) -> Reward:
        """As in `Session`."""
        raise NotImplementedError


def tool(name: str, description: str = "", **parameters: str) -> dict[str, Any]:
    """A tool in the Responses API's form; parameters by name and JSON type, all required."""
    return {"type": "function", "name": name, "description": description, "strict": True, "parameters": {
        "type": "object", "properties": {key: {"type": kind} for key, kind in parameters.items()}, "required": list(parameters),
        "additionalProperties": False}}
