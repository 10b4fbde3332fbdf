"""Between the text of a policy and the items of the Responses API: reasoning, messages, calls of tools and their results."""

from __future__ import annotations

import json
import re
from typing import Any

from stagecraft.environments.api import Item
from stagecraft.environments.verifiers import object_without_duplicates
from stagecraft.environments.verify import split_thinking

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


def items_of(text: str, turn: int) -> list[Item] | None:
    """An assistant's text as items; None if its thinking or a tool call is malformed.

    Every `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` is a call; what stands around them is the message, which is left out
    if it is empty and there are calls.
    """
    halves = split_thinking(text)
    if halves is None:
        return None
    thinking, answer = halves
    calls = []
    for number, written in enumerate(_CALL.findall(answer)):
        call = read_call(written)
        if call is None:
            return None
        calls.append({"type": "function_call", "call_id": f"call-{turn}-{number}", "name": call["name"],
                      "arguments": json.dumps(call["arguments"])})
    message = _CALL.sub("", answer).strip()
    if "<tool_call>" in message or "</tool_call>" in message:
        return None
    items: list[Item] = []
    if thinking:
        items.append({"type": "reasoning", "id": f"think-{turn}", "summary": [{"type": "summary_text", "text": thinking}]})
    if message or not calls:
        items.append({"type": "message", "id": f"say-{turn}", "role": "assistant", "status": "completed",
                      "content": [{"type": "output_text", "text": message, "annotations": []}]})
    return items + calls


def read_call(written: str) -> dict[str, Any] | None:
    """{"name": ..., "arguments": {...}} of a call as it is written; None if it is anything else."""
    try:
        call = json.loads(written, object_pairs_hook=object_without_duplicates)
    except (ValueError, RecursionError):
        return None
    well_formed = (isinstance(call, dict) and call.keys() == {"name", "arguments"} and isinstance(call["name"], str)
                   and isinstance(call["arguments"], dict))
    return call if well_formed else None


def write_call(name: str, **arguments: Any) -> str:
    """A call as the policy is to write it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def last_message(output: list[Item]) -> str:
    """The text of the last message of the assistant; empty if there is none."""
    for item in reversed(output):
        if item["type"] == "message" and item["role"] == "assistant":
            return "".join(part["text"] for part in item["content"])
    return ""


def calls_of(output: list[Item]) -> list[dict[str, Any]]:
    """The calls made, in order: [{"name": ..., "arguments": {...}}]."""
    return [{"name": item["name"], "arguments": json.loads(item["arguments"])} for item in output if item["type"] == "function_call"]


def response(output: list[Item]) -> dict[str, Any]:
    """The output as a whole response of the Responses API."""
    return {"id": "response", "created_at": 0.0, "model": "policy", "object": "response", "output": output, "parallel_tool_calls": True,
            "tool_choice": "auto", "tools": []}
