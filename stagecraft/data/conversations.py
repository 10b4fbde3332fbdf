"""Conversations in the OpenAI messages format: read from any JSONL, and encoded with a loss on what the assistant says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagecraft.contract.errors import UserError
from stagecraft.data.chat import render_prompt
from stagecraft.data.messages import plain
from stagecraft.data.tokenizer import IM_END

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = ("system", "user", "assistant", "tool")
MEND = "mend the line, or set bad_rows to skip"


@dataclass
class Read:
    """Rows of a file, {"messages": [...], "tools": [...]}, with the numbers of their lines, and the lines that were skipped: (number,
    reason)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)


def read_conversations(path: Path, skip_bad: bool) -> Read:
    """Read a JSONL file of conversations.

    Args:
        skip_bad: leave bad lines out and count them; otherwise the first is an error.

    Raises:
        UserError: the file cannot be read, or a line is bad; names it.
    """
    read = Read()
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                if not (reason := _add(line, read.rows)):
                    read.lines.append(number)
                elif skip_bad:
                    read.skipped.append((number, reason))
                else:
                    raise UserError(reason, where=f"{path}:{number}", mend=MEND)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read conversations: {error}", where=str(path), mend="give a readable file of JSON lines") from None
    return read


def _add(line: str, rows: list[dict[str, Any]]) -> str:
    """Append a line's conversation; the reason if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list) or not row["messages"]:
        return "no conversation: an object with a list 'messages' is needed"
    messages = [plain(message) if isinstance(message, dict) else message for message in row["messages"]]
    for place, message in enumerate(messages):
        if reason := _fault(message, place):
            return f"message {place + 1}: {reason}"
    if messages[-1]["role"] != "assistant":
        return "the last message is not the assistant's"
    if not isinstance(row.get("tools") or [], list):
        return "'tools' is no list"
    rows.append({"messages": messages, "tools": row.get("tools") or []})
    return ""


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
            except ValueError:
                return "the arguments of a tool call are not JSON"
            if not isinstance(arguments, dict):
                return "the arguments of a tool call are no object"
    if not isinstance(content, str) and not (role == "assistant" and content is None and calls):
        return "its content is no text"
    if not isinstance(message.get("reasoning_content") or "", str):
        return "its reasoning_content is no text"
    return ""


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
