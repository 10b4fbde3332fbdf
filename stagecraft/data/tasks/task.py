"""One verifiable task: a prompt, what verifies it, and two demonstrations of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A task as a family's generator draws it.

    Args:
        prompt: the user's message.
        verifier: `{"kind": ..., ...}` for `stagecraft.environments.verify`.
        good: an assistant's text that verifies with score 1.
        flawed: the family's weak or wrong style of answering the same prompt (see `families.FLAWS`).
        tools: OpenAI tool list, for families that call tools.
    """

    prompt: str
    verifier: dict[str, Any]
    good: str
    flawed: str
    tools: tuple[dict[str, Any], ...] = ()

    def row(self, identifier: str, family: str) -> dict[str, Any]:
        """The task as a row, without its demonstrations."""
        row = {"id": identifier, "family": family, "messages": [{"role": "user", "content": self.prompt}], "verifier": self.verifier}
        return {**row, "tools": list(self.tools)} if self.tools else row


def assistant(answer: str, thinking: str = "") -> str:
    """An assistant's text in words: the think block (empty when there is nothing to think), a space and the answer.

    The space makes the answer's first word the token it is in the prompt, where a space stands before it too.
    """
    return f"<think>{thinking}</think> {answer}"


def text_task(prompt: str, answer: str, flawed: str) -> Task:
    """A task whose answer is compared as text; `flawed` is the wrong answer of the flawed demonstration."""
    return Task(prompt, {"kind": "text", "answer": answer}, assistant(answer), assistant(flawed))
