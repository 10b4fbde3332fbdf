"""From a completion to a reward: unfinished or malformed thinking scores 0, the rest goes to the row's verifier."""

from __future__ import annotations

from typing import Any

from stagecraft.environments.reward import Reward
from stagecraft.environments.verifiers import verifier_of

THINK, END_THINK = "<think>", "</think>"


def split_thinking(completion: str) -> tuple[str, str] | None:
    """(thinking, answer) of an assistant's text; None if its thinking is malformed.

    Well formed is: no think tag at all (thinking was switched off in the prompt), or exactly one `<think>...</think>`
    that only white space precedes.
    """
    opened, closed = completion.count(THINK), completion.count(END_THINK)
    if opened == closed == 0:
        return "", completion
    text = completion.lstrip()
    if opened != 1 or closed != 1 or not text.startswith(THINK):
        return None
    thinking, answer = text.removeprefix(THINK).split(END_THINK)
    return thinking, answer


def verify(row: dict[str, Any], completion: str, finished: bool = True) -> Reward:
    """Judge the assistant's text for a task row.

    Args:
        row: a task row; its `verifier` member names the verifier and what it needs.
        completion: the assistant's text without the final `<|im_end|>`.
        finished: False if generation was cut off before `<|im_end|>`.

    Returns:
        score 1 for a finished, well-formed and correct completion, else 0; `parts` says why.

    Raises:
        UserError: the row names an unknown verifier.
    """
    judge = verifier_of(row)
    halves = split_thinking(completion)
    if not finished or halves is None:
        return Reward(0.0, {"finished": float(finished), "format": 0.0, "correct": 0.0})
    parts = {"finished": 1.0, **judge(row["verifier"], halves[1])}
    return Reward(parts["correct"], parts)
