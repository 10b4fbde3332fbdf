"""A whole conversation between a policy and an environment: turns, calls of tools, replies, and the verdict at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from stagecraft.environments.api import Item, Row, Seeds
from stagecraft.environments.items import items_of
from stagecraft.environments.reward import Reward

Policy = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]  # (messages, tools of the OpenAI chat API) -> the assistant's text


@dataclass
class Episode:
    """How a conversation went.

    Attributes:
        messages: all of it, in the OpenAI chat API's form.
        output: what the policy and the tools put out, as items.
        malformed: a turn's thinking or call could not be read, which ended it; its reward is 0.
        invalid_calls: calls of tools that do not exist or with arguments that the tool refuses.
        cut: the turns were used up.
    """

    row: Row
    messages: list[dict[str, Any]]
    output: list[Item] = field(default_factory=list)
    reward: Reward = field(default_factory=lambda: Reward(0.0))
    turns: int = 0
    malformed: bool = False
    invalid_calls: int = 0
    cut: bool = False


def chat_request(row: Row) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a row asks, in the OpenAI chat API's form: (messages, tools)."""
    asked = row["responses_create_params"]
    tools = [{"type": "function", "function": {key: tool[key] for key in ("name", "description", "parameters") if key in tool}}
             for tool in asked.get("tools") or []]
    return [dict(message) for message in asked["input"]], tools


def converse(environment: Seeds, row: Row, policy: Policy, turns: int) -> Episode:
    """Let the policy speak until it makes no call and nobody replies, or `turns` times; then verify.

    Raises:
        UserError: from an environment that cannot be reached.
    """
    talk = conversation(environment, row, turns)
    asked = next(talk)
    while True:
        try:
            asked = talk.send(policy(*asked))
        except StopIteration as end:
            return end.value


def conversation(environment: Seeds, row: Row, turns: int) -> Generator[tuple[list[dict[str, Any]], list[dict[str, Any]]], str, Episode]:
    """As `converse`, for who speaks for several policies at a time: gives what a `Policy` is asked, takes what it says.

    Raises:
        UserError: from an environment that cannot be reached.
    """
    session = environment.seed(row)
    messages, tools = chat_request(row)
    episode = Episode(row, messages)
    while True:
        text = yield messages, tools
        episode.turns += 1
        messages.append({"role": "assistant", "content": text})
        items = items_of(text, episode.turns)
        if items is None:
            episode.malformed = True
            episode.reward = Reward(0.0, {"format": 0.0, "correct": 0.0})
            return episode
        episode.output += items
        calls = [item for item in items if item["type"] == "function_call"]
        for item in calls:
            answer = session.call(item["name"], json.loads(item["arguments"]))
            episode.invalid_calls += answer.startswith('{"error"')
            episode.output.append({"type": "function_call_output", "call_id": item["call_id"], "output": answer})
            messages.append({"role": "tool", "content": answer})
        if not calls:
            spoken = "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"])
            answer = session.reply(spoken)
            if answer is None:
                break
            messages.append({"role": "user", "content": answer})
        if episode.turns == turns:
            episode.cut = True
            break
    verdict = session.verify(episode.output)
    episode.reward = Reward(verdict.score, {"format": 1.0, "valid_calls": float(not episode.invalid_calls), **verdict.parts})
    return episode


def script(texts: Iterable[str]) -> Policy:
    """A policy that says the texts one after another, and nothing once they are used up."""
    left = iter(texts)
    return lambda messages, tools: next(left, "")
