"""The reasoning modes at the endpoint: what each leaves of the thinking, and of the right answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from openai import OpenAI
from tokenizers import Tokenizer

from components.serve.checks import CheckFailedError, ask
from components.serve.estimates import estimated
from components.serve.params import Modes
from stagecraft.data.tokenizer import IM_END
from stagecraft.environments import verify
from stagecraft.environments.verify import END_THINK, THINK


def requests(budget: int) -> dict[str, dict[str, Any]]:
    """Mode -> the members of a chat request that ask for it."""
    return {"off": {"chat_template_kwargs": {"enable_thinking": False}}, "low": {"reasoning_effort": "low"}, "regular": {},
            "budget": {"thinking_token_budget": budget}}


def compare_modes(client: OpenAI, model: str, rows: Sequence[dict[str, Any]], modes: Modes, tokenizer: Tokenizer,
                  at_once: int) -> list[dict[str, Any]]:
    """Ask the same rows in every mode, greedily, `at_once` at a time.

    Returns:
        for each mode `mode`, `request` (what was added to it), `prompts`, and mean and `_stderr` over prompts of `thinking_tokens`
        (tags not counted), `answer_tokens` (what follows the thinking, its end not counted) and `exact_match`.

    Raises:
        CheckFailedError: an answer thinks beyond its budget.
    """
    count = counter(tokenizer)
    compared = []
    for mode, request in requests(modes.budget).items():
        with ThreadPoolExecutor(at_once) as clients:
            answers = list(clients.map(lambda row, request=request: ask(client, model, row, modes.max_tokens, mode=request), rows))
        counts = [count(answer.tokens) for answer in answers]
        if mode == "budget" and (most := max(thought for thought, _ in counts)) > modes.budget:
            raise CheckFailedError(f"asked to think for {modes.budget} tokens at most, the server let the model think for {most}")
        scores = [verify(row, answer.text(tokenizer), finished=answer.finished).score for row, answer in zip(rows, answers)]
        compared.append({"mode": mode, "request": request, "prompts": len(rows),
                         **estimated("thinking_tokens", [thought for thought, _ in counts]),
                         **estimated("answer_tokens", [said for _, said in counts]), **estimated("exact_match", scores)})
    return compared


def counter(tokenizer: Tokenizer) -> Callable[[Sequence[int]], tuple[int, int]]:
    """What counts the tokens of an answer: (of its thinking, of what follows); all is thinking until a block that was opened is closed."""
    opens, closes, end = (tokenizer.token_to_id(token) for token in (THINK, END_THINK, IM_END))

    def count(tokens: Sequence[int]) -> tuple[int, int]:
        spoken = [token for token in tokens if token != end]
        if opens not in spoken:
            return 0, len(spoken)
        inside = spoken[spoken.index(opens) + 1:]
        thought = inside.index(closes) if closes in inside else len(inside)
        return thought, len(inside[thought + 1:])

    return count


def metrics(compared: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mode -> its figures."""
    return {each["mode"]: {key: value for key, value in each.items() if isinstance(value, float)} for each in compared}
