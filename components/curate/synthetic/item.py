"""One synthetic problem: its document, its task, and what verifies it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any

from stagecraft.data.tasks.families import GOOD
from stagecraft.data.tasks.task import assistant

_OPENINGS = ("Question: ", "Problem: ", "Exercise: ", "", "Here is a problem. ", "Consider this. ")
_MIDDLES = ("Solution: ", "Working: ", "", "Reasoning: ", "Here is how to solve it. ", "Let us go step by step. ")
_CLOSINGS = ("Answer: {}", "The answer is {}.", "Final answer: {}", "So the answer is {}.", "Result: {}", "Hence the answer: {}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")


@dataclass(frozen=True)
class Item:
    """A problem with a short answer that a machine can check.

    Args:
        family, topic: what it is about.
        document: the text for pre-training; it ends with the answer.
        prompt: the same problem as a user's message.
        working: what an assistant thinks before it answers.
        answer: an integer, a decimal number or a few words.
        check: `{"kind": ..., ...}` for `verify.failure`: plain data from which the answer can be found without the generator.
    """

    family: str
    topic: str
    document: str
    prompt: str
    working: str
    answer: str
    check: dict[str, Any]


def compose(random: Random, problem: str, solution: str, answer: str) -> str:
    """A document of problem, solution and answer, in one of many layouts; the last line ends with the answer."""
    opening, middle, closing = random.choice(_OPENINGS), random.choice(_MIDDLES), random.choice(_CLOSINGS)
    return f"{opening}{problem}\n\n{middle}{solution}\n\n{closing.format(answer)}\n"


def problem(random: Random, family: str, topic: str, text: str, steps: str, answer: str, check: dict[str, Any],
            form: str = "") -> Item:
    """An item whose document and task pose the same problem.

    Args:
        text: the problem.
        steps: its solution.
        form: what the task's answer must look like, where the problem does not say it.
    """
    return Item(family, topic, compose(random, text, steps, answer), f"{text} {form}".rstrip(), steps, answer, check)


def task_row(item: Item, number: int) -> dict[str, Any]:
    """The item as a row of tasks/sft.jsonl, with a demonstration that thinks and then answers."""
    is_integer = _INTEGER.fullmatch(item.answer) is not None
    verifier = {"kind": "number", "answer": int(item.answer)} if is_integer else {"kind": "text", "answer": item.answer}
    return {"id": f"{item.family}-{number:06d}", "family": item.family,
            "messages": [{"role": "user", "content": item.prompt}], "verifier": verifier,
            "demonstration": assistant(item.answer, item.working), "mode": GOOD}
