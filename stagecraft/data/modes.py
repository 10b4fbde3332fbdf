"""Reasoning modes of a demonstration: full, low effort, off, and a thinking that is cut short (arXiv 2604.12374, section 3.1).

Which conversation gets which mode is drawn by its number, so it does not change when others are added behind it.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

_THINKING = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
LOW_EFFORT = "Effort: low"  # the system message, or a last line of it, that asks for little thinking


def draw_mode(seed: int, number: int, shares: dict[str, float]) -> str:
    """`off`, `low`, `cut` or `full`, by their shares; what they leave is `full`."""
    drawn = Random(f"{seed}/mode/{number}").random()
    for mode, share in shares.items():
        if drawn < share:
            return mode
        drawn -= share
    return "full"


def in_mode(row: dict[str, Any], mode: str, seed: int) -> tuple[dict[str, Any], bool]:
    """A conversation in a mode: (row, whether its prompt leaves the think block open).

    - off: no thinking; the prompt closes the block.
    - low: the prompt asks for low effort, and of the thinking the first half of the words is left.
    - cut: of the thinking a random number of words is left, as when a budget ends it; the answer follows.
    """
    if mode == "full":
        return row, True
    random = Random(seed)
    messages = [{**message, **_thinks(message, mode, random)} if message["role"] == "assistant" else message for message in row["messages"]]
    if mode == "low":
        system = messages.pop(0)["content"] if messages[0]["role"] == "system" else ""
        messages.insert(0, {"role": "system", "content": f"{system}\n{LOW_EFFORT}" if system else LOW_EFFORT})
    return {**row, "messages": messages}, mode != "off"


def _thinks(message: dict[str, Any], mode: str, random: Random) -> dict[str, Any]:
    """The changed members of an assistant's message."""
    inline = _THINKING.match(message.get("content") or "")
    words = (inline[1] if inline else message.get("reasoning_content") or "").split(" ")
    left = {"off": 0, "low": len(words) // 2, "cut": random.randint(0, len(words))}[mode]
    thinking = " ".join(words[:left])
    if inline is None:
        return {"reasoning_content": thinking}
    return {"content": f"<think>{thinking}</think>{message['content'][inline.end():]}"}
