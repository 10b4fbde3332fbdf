"""What an answer has written in it: tool calls, and code in a fence. Every verifier, episode and check reads them by these rules."""

from __future__ import annotations

import json
import re
from typing import Any

_CALL, _END_CALL = "<tool_call>", "</tool_call>"
_FENCE = re.compile(r"```(?:([^\n`]*)\n(.*?)|[^\n`]+)```", re.DOTALL)  # the second: a span within a line, which pairs with no fence
_PYTHON = ("py", "python", "python3")


def read_calls(answer: str) -> tuple[list[dict[str, Any]], str] | None:
    """The tool calls of an answer, and what stands around them without the white space at its ends; None if one is malformed.

    A call is `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: an object of these two keys, a string and an object, with no
    key twice at any depth. It ends at the first marker, as for vLLM's parser.
    """
    *closed, rest = answer.split(_END_CALL)  # no expression: for every beginning without an end it would read all that follows
    parts = [part.partition(_CALL) for part in closed]
    calls = [_read(written) if begins else None for _, begins, written in parts]
    around = "".join([*(before for before, _, _ in parts), rest]).strip()
    if None in calls or _CALL in around or _END_CALL in around:
        return None
    return calls, around


def lone_call(answer: str) -> dict[str, Any] | None:
    """The tool call that an answer is; None if it is anything else or more."""
    found = read_calls(answer)
    return found[0][0] if found and len(found[0]) == 1 and not found[1] else None


def write_call(name: str, **arguments: Any) -> str:
    """A call as the policy is to write it."""
    return f"{_CALL}{json.dumps({'name': name, 'arguments': arguments})}{_END_CALL}"


def object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: a key that stands twice makes an object ambiguous (ValueError)."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a JSON object repeats a key")
    return members


def code_of(answer: str) -> str:
    """The Python code of an answer: the last block in a fence that says so, else the last in one that names no language, else all of it."""
    blocks = [((*info.lower().split(), "")[0], code) for info, code in _FENCE.findall(answer) if code]
    python = [code for language, code in blocks if language in _PYTHON]
    unnamed = [code for language, code in blocks if not language]
    return (python or unnamed or [answer])[-1]


def _read(written: str) -> dict[str, Any] | None:
    try:
        call = json.loads(written, object_pairs_hook=object_without_duplicates)
    except (ValueError, RecursionError):
        return None
    well_formed = (isinstance(call, dict) and call.keys() == {"name", "arguments"} and isinstance(call["name"], str)
                   and isinstance(call["arguments"], dict))
    return call if well_formed else None
