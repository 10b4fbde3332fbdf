"""Between the text of a policy and the items of the Responses API: reasoning, messages, calls of tools and their results."""

from __future__ import annotations

import json
from typing import Any

from stagecraft.environments.api import Item
from stagecraft.environments.verify import split_thinking
from stagecraft.environments.written import read_calls


def items_of(text: str, turn: int) -> list[Item] | None:
    """An assistant's text as items; None if its thinking or a tool call is malformed.

    What stands around the calls, as `read_calls` reads them, is the message, which is left out if it is empty and there are calls.
    """
    halves = split_thinking(text)
    if halves is None:
        return None
    thinking, answer = halves
    found = read_calls(answer)
    if found is None:
        return None
    written, message = found
    calls = [{"type": "function_call", "call_id": f"call-{turn}-{number}", "name": call["name"],
              "arguments": json.dumps(call["arguments"])} for number, call in enumerate(written)]
    items: list[Item] = []
    if thinking:
        items.append({"type": "reasoning", "id": f"think-{turn}", "summary": [{"type": "summary_text", "text": thinking}]})
    if message or not calls:
        items.append({"type": "message", "id": f"say-{turn}", "role": "assistant", "status": "completed",
                      "content": [{"type": "output_text", "text": message, "annotations": []}]})
    return items + calls


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
