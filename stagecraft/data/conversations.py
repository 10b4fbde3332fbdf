"""Conversations in the OpenAI messages format: read from any JSONL, and encoded with a loss on what the assistant says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecraft.contract.errors import UserError
from stagecraft.data.chat import render_prompt
from stagecraft.data.messages import plain
from stagecraft.data.tokenizer import CONTROL, IM_END, MARKERS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = ("system", "user", "assistant", "tool")
_THINK = MARKERS[0]
MEND = "mend the line, or set bad_rows to skip"


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers from 1.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            yield from ((number, line) for number, line in enumerate(stream, 1) if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read conversations: {error}", where=str(path), mend="give a readable file of JSON lines") from None


def parse_conversation(line: str) -> dict[str, Any]:
    """A line's conversation, {"messages": [...], "tools": [...]}.

    Raises:
        UserError: it is none; says why.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        raise UserError("no conversation: an object with a list 'messages' is needed")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError("a text has half of a surrogate pair, as of an emoji that was cut") from None
    messages = [_from_its_thinking(plain(message)) if isinstance(message, dict) else message for message in row["messages"]]
    for place, message in enumerate(messages):
        if reason := _fault(message, place):
            raise UserError(f"message {place + 1}: {reason}")
    if messages[0]["role"] == "assistant":
        raise UserError("the first message is the assistant's, who has nothing to answer")
    if messages[-1]["role"] != "assistant":
        raise UserError("the last message is not the assistant's")
    tools = row.get("tools") or []
    if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
        raise UserError("'tools' is no list of functions, each with a name and its parameters as a JSON schema")
    return {"messages": messages, "tools": row.get("tools") or []}


def _from_its_thinking(message: dict[str, Any]) -> dict[str, Any]:
    """Without blanks before a think block, before which the chat template would write an empty one."""
    content = message.get("content")
    begins = message.get("role") == "assistant" and isinstance(content, str) and content.lstrip().startswith(_THINK)
    return {**message, "content": content.lstrip()} if begins else message


def _is_tool(tool: Any) -> bool:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    parameters = function.get("parameters") or {}
    return isinstance(parameters, dict) and isinstance(parameters.get("properties") or {}, dict)


def _fault(message: Any, place: int) -> str:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        return f"its role is none of {', '.join(_ROLES)}"
    role, content, calls = message["role"], message.get("content"), message.get("tool_calls")
    if role == "system" and place:
        return "a system message stands first or not at all"
    if calls is not None:
        if role != "assistant" or not isinstance(calls, list):
            return "tool calls are a list, and the assistant's"
        for call in calls:
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                return "a tool call without a function's name"
            arguments = function.get("arguments")
            try:
                arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            except (ValueError, RecursionError):
                return "the arguments of a tool call are not JSON"
            if not isinstance(arguments, dict):
                return "the arguments of a tool call are no object"
    if not isinstance(content, str) and not (role == "assistant" and content is None and calls):
        return "its content is no text"
    if not isinstance(message.get("reasoning_content") or "", str):
        return "its reasoning_content is no text"
    control = CONTROL.search(json.dumps(message, ensure_ascii=False))
    return f"{control[0]} in it would become a control token, as if its turn or the text ended there" if control else ""


def encode_conversation(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any],
                        enable_thinking: bool = True) -> tuple[list[int], list[int]]:
    """A conversation as token ids and loss mask: 1 on what each assistant turn says, `<|im_end|>` included, 0 on the rest.

    Every turn is preceded by just the ids that the model would be prompted with there.

    Args:
        row: `messages`, the last of them the assistant's; optionally `tools`.
        enable_thinking: False closes each think block in the prompt; the turns then must not think.

    Raises:
        UserError: the chat template writes a turn otherwise than its prompt announces (a turn that thinks, with thinking off).
    """
    ids: list[int] = []
    mask: list[int] = []
    written = ""
    for place, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        prompt = render_prompt(tokenizer, {**row, "messages": row["messages"][:place]}, enable_thinking)
        whole = tokenizer.apply_chat_template(row["messages"][:place + 1], tools=row.get("tools") or None, tokenize=False)
        end = whole.rindex(IM_END) + len(IM_END)
        if not prompt.startswith(written) or not whole.startswith(prompt):
            raise UserError(f"message {place + 1} does not go on from its prompt", where="chat template", mend="strip its thinking")
        silent, spoken = (tokenizer.encode(text, add_special_tokens=False) for text in (prompt[len(written):], whole[len(prompt):end]))
        ids += silent + spoken
        mask += [0] * len(silent) + [1] * len(spoken)
        written = whole[:end]
    return ids, mask
