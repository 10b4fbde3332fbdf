"""Messages as OpenAI's APIs have them, brought to the form that chat templates read."""

from __future__ import annotations

from typing import Any


def plain(message: dict[str, Any]) -> dict[str, Any]:
    """The message with parts of text joined, and the developer's role by its older name; what has no such form is left as it is."""
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        message = {**message, "content": "".join(part["text"] for part in content)}
    return {**message, "role": "system"} if message.get("role") == "developer" else message
