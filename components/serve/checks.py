"""Whether the running server does what clients rely on: chat, streaming, answers in a schema, tool calls. Any model must pass."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from openai import OpenAI
from tokenizers import Tokenizer

from components.serve.estimates import estimated
from stagecraft.data.tokenizer import IM_END
from stagecraft.environments import verify
from stagecraft.environments.written import lone_call

NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["city", "days"],
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 28}},
}


class CheckFailedError(RuntimeError):
    """The server runs, but not as it should; the message says what was asked and what came."""


@dataclass(frozen=True)
class Answer:
    """A greedy answer to a task row.

    Attributes:
        tokens: what was generated, the stop token included.
        gaps: log-probability of the best token less that of the second best, at each position; empty when not asked for.
        finished: whether the model ended it.
        message: the answer as the server's parsers divided it.
    """

    tokens: list[int]
    gaps: list[float]
    finished: bool
    message: Any

    def text(self, tokenizer: Tokenizer) -> str:
        """The assistant's text without its end."""
        end = tokenizer.token_to_id(IM_END)
        return tokenizer.decode([token for token in self.tokens if token != end], skip_special_tokens=False)


def ask(client: OpenAI, model: str, row: dict[str, Any], max_tokens: int, gaps: bool = False,
        mode: Mapping[str, Any] = MappingProxyType({})) -> Answer:
    """Ask for a greedy answer to a task row over the chat API; `mode` are members of the request that say how to reason."""
    tools = {"tools": row["tools"]} if "tools" in row else {}
    best = {"logprobs": True, "top_logprobs": 2} if gaps else {}
    (choice,) = client.chat.completions.create(model=model, messages=row["messages"], max_tokens=max_tokens, temperature=0.0,
                                               extra_body={"return_token_ids": True, **mode}, **tools, **best).choices
    positions = choice.logprobs.content if gaps else []
    pairs = [sorted((top.logprob for top in position.top_logprobs), reverse=True) for position in positions]
    return Answer(tokens=choice.token_ids, gaps=[best - second for best, second in pairs], finished=choice.finish_reason != "length",
                  message=choice.message)


def check_streaming(client: OpenAI, model: str, row: dict[str, Any], max_tokens: int, tokenizer: Tokenizer,
                    draft_tokens: int) -> dict[str, Any]:
    """The pieces of a streamed answer add up to the answer that comes whole.

    Special tokens in mid-answer, which only a bad model writes, are not compared: vLLM 0.32.0 streams them and drops them otherwise.

    Returns:
        {"pieces": number of pieces with text in them, "reasoning", "content"}.

    Raises:
        CheckFailedError: they do not, or an answer longer than one step's tokens came in one piece.
    """
    asked = {"model": model, "messages": row["messages"], "max_tokens": max_tokens, "temperature": 0.0}
    whole = client.chat.completions.create(**asked).choices[0].message
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]

    def plain(text: str) -> str:
        return re.sub("|".join(map(re.escape, special)), "", text)

    streamed = {part: plain("".join(getattr(delta, part, None) or "" for delta in deltas)) for part in ("reasoning", "content")}
    expected = {part: plain(getattr(whole, part, None) or "") for part in ("reasoning", "content")}
    pieces = sum(bool(getattr(delta, "reasoning", None) or delta.content) for delta in deltas)
    steps = len(tokenizer.encode("".join(expected.values()), add_special_tokens=False).ids) / (draft_tokens + 1)
    if streamed != expected or (pieces < 2 and steps > 1):
        raise CheckFailedError(f"streaming {row['messages']}: {pieces} pieces make {streamed}, the whole answer is {expected}")
    return {"pieces": pieces, **streamed}


def check_schema(client: OpenAI, model: str) -> dict[str, Any]:
    """An answer asked for in a JSON schema is an instance of it.

    Returns:
        the answer.

    Raises:
        CheckFailedError: it is not.
    """
    form = {"type": "json_schema", "json_schema": {"name": "stay", "strict": True, "schema": SCHEMA}}
    message = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "A city and a number of days"}], max_tokens=64, temperature=0.0,
        response_format=form, extra_body=NO_THINKING).choices[0].message
    try:
        value = json.loads(message.content)
        if value.keys() != {"city", "days"} or value["city"] not in ("Rome", "Oslo") or value["days"] not in range(1, 29):
            raise ValueError("it is JSON of another form")
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckFailedError(f"asked for {json.dumps(SCHEMA)}, the server gave {message.content!r}: {error}") from None
    return value


def check_tool_call(client: OpenAI, model: str) -> dict[str, Any]:
    """A tool call, whose text a grammar forces on the model, arrives as a tool call, whole and streamed.

    Returns:
        the call.

    Raises:
        CheckFailedError: the server's parser makes something else of it.
    """
    call = {"name": "pay", "arguments": {"to": "Ann", "amount": 5}}
    types = {"to": {"type": "string"}, "amount": {"type": "integer"}}
    tool = {"type": "function", "function": {"name": "pay", "parameters": {"type": "object", "properties": types}}}
    asked = {
        "model": model, "messages": [{"role": "user", "content": "Pay Ann 5"}], "tools": [tool], "max_tokens": 100, "temperature": 0.0,
        "extra_body": {**NO_THINKING, "structured_outputs": {"choice": [f"<tool_call>{json.dumps(call)}</tool_call>"]}},
    }
    message = client.chat.completions.create(**asked).choices[0].message
    whole = [_read(made.function.name, made.function.arguments) for made in message.tool_calls or []]
    deltas = [chunk.choices[0].delta for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
    pieces = [made.function for delta in deltas for made in delta.tool_calls or []]
    streamed = _read("".join(piece.name or "" for piece in pieces), "".join(piece.arguments or "" for piece in pieces))
    if whole != [call] or streamed != call:
        raise CheckFailedError(f"the model wrote the tool call {call}, the server gave {whole}, streamed {streamed}")
    return call


def check_answers(rows: list[dict[str, Any]], answers: list[Answer], tokenizer: Tokenizer) -> dict[str, float]:
    """Judge the answers as evaluation does, and see that every well-formed tool call arrives as a tool call.

    Returns:
        `exact_match` over all rows, `tool_calls` (share of rows with tools that came back as a tool call; not there without such rows),
        each with `_stderr` over rows.

    Raises:
        CheckFailedError: the model wrote a tool call and the server's parser made something else of it.
    """
    correct, called = [], []
    for row, answer in zip(rows, answers):
        text = answer.text(tokenizer)
        correct.append(verify(row, text, finished=answer.finished).score == 1.0)
        if "tools" not in row:
            continue
        calls = [_read(call.function.name, call.function.arguments) for call in answer.message.tool_calls or []]
        called.append(bool(calls))
        written = text.rpartition("</think>")[2]
        call = lone_call(written)
        if answer.finished and call and calls != [call]:
            raise CheckFailedError(f"the model wrote {written!r}, the server gave the tool calls {calls}")
    return {**estimated("exact_match", correct), **estimated("tool_calls", called)}


def _read(name: str, arguments: str) -> dict[str, Any]:
    try:
        return {"name": name, "arguments": json.loads(arguments)}
    except ValueError:
        return {"name": name, "arguments": arguments}
