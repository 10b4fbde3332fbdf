"""A whole conversation between a policy and an environment: turns, calls of tools, replies, and the verdict at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from stagecraft.data.messages import plain
from stagecraft.environments.api import InvalidCallError, Item, Row, Seeds
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
        invalid_calls: calls of tools that do not exist or with arguments that a tool's schema does not allow.
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
    """What a row asks, in the OpenAI chat API's form: (messages, tools).

    Raises:
        ValueError: an item that is no thinking, no text of a system, a user or an assistant, no call and no output of one.
    """
    asked = row["responses_create_params"]
    items = [{"role": "user", "content": asked["input"]}] if isinstance(asked["input"], str) else asked["input"]
    tools = [{"type": "function", "function": {key: tool[key] for key in ("name", "description", "parameters") if key in tool}}
             for tool in asked.get("tools") or []]
    messages: list[dict[str, Any]] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call":  # calls of one turn are items of their own there, and one message here
            if not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""})
            function = {"name": item["name"], "arguments": item["arguments"]}
            messages[-1].setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]})
        elif kind == "reasoning":  # it begins the assistant's turn, whose text and calls follow
            thinking = "".join(part["text"] for part in item["summary"])
            if messages and _thinks(messages[-1]):
                messages[-1]["reasoning_content"] += thinking
            else:
                messages.append({"role": "assistant", "content": "", "reasoning_content": thinking})
        else:
            message = _chat_message(item)
            if message["role"] == "assistant" and messages and _thinks(messages[-1]):
                messages[-1] |= message
            else:
                messages.append(message)
    if not messages:
        raise ValueError("input is empty")
    return messages, tools


def _thinks(message: dict[str, Any]) -> bool:
    """It is an assistant's turn that has no more than its thinking yet."""
    return "reasoning_content" in message and not message["content"] and "tool_calls" not in message


def _chat_message(item: Item) -> dict[str, Any]:
    message = plain(item)
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise ValueError(f"a message of {role!r} with {type(content).__name__} for content")
    return {"role": role, "content": content}


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
            try:
                answer = session.call(item["name"], json.loads(item["arguments"]))
            except InvalidCallError as invalid:
                episode.invalid_calls += 1
                answer = str(invalid)
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
