"""Agentic benchmarks through lm-eval, which knows one answer to a prompt: conversations with an environment, a turn at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.api_models import JsonChatStr

from components.evaluate.benchmarks import EPISODE
from stagecraft.environments.episode import Episode, conversation
from stagecraft.environments.items import items_of
from stagecraft.environments.library import environment


def play(requests: list[Instance], answer: Callable[[list[Instance], int], list[str]]) -> list[str]:
    """Answer every request; one that carries an episode is a whole conversation. All of them take a turn together: engines compute batches.

    Args:
        answer: asks a model; the second argument is the number of the turn, from 1. An empty text ends a conversation.

    Returns:
        the answers; of a conversation a JSON object, {"score", "parts", "turns", "cut", "malformed", "invalid_calls", "messages"}.
    """
    rows = [json.loads(request.args[0].prompt)[-1].get(EPISODE) for request in requests]
    answers: dict[int, str] = {}
    plain = [index for index, row in enumerate(rows) if row is None]
    if plain:
        answers.update(zip(plain, answer([requests[index] for index in plain], 1)))
    talks = {index: conversation(environment(row["environment"]), row, environment(row["environment"]).turns)
             for index, row in enumerate(rows) if row is not None}
    asked = {index: next(talk) for index, talk in talks.items()}
    turn = 0
    while asked:
        turn += 1
        said = answer([_turn(requests[index], *each) for index, each in asked.items()], turn)
        for index, text in zip(list(asked), said):
            try:
                asked[index] = talks[index].send(text)
            except StopIteration as end:
                del asked[index]
                answers[index] = _written(end.value)
    return [answers[index] for index in range(len(requests))]


def as_openai(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as OpenAI endpoints want it: calls in `tool_calls`, and each result with the id of its call."""
    written, open_calls = [], []
    for number, message in enumerate(messages):
        items = items_of(message["content"], number) if message["role"] == "assistant" else None
        calls = [item for item in items or [] if item["type"] == "function_call"]
        if calls:
            said = "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])
            functions = [{"id": call["call_id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
                         for call in calls]
            message = {"role": "assistant", "content": said or None, "tool_calls": functions}
            open_calls = [call["call_id"] for call in calls]
        elif message["role"] == "tool":
            message = {**message, "tool_call_id": open_calls.pop(0)}
        written.append(message)
    return written


def _turn(request: Instance, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> Instance:
    own = {key: value for key, value in json.loads(request.args[0].prompt)[-1].items() if key != EPISODE}
    if tools:
        own["tools"] = tools
    return replace(request, arguments=(JsonChatStr(json.dumps([*messages, own])), request.args[1]))


def _written(episode: Episode) -> str:
    return json.dumps({"score": episode.reward.score, "parts": episode.reward.parts, "turns": episode.turns, "cut": episode.cut,
                       "malformed": episode.malformed, "invalid_calls": episode.invalid_calls, "messages": episode.messages},
                      ensure_ascii=False)
