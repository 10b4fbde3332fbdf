"""Agentic tasks: rows of the environments that reward the model in reinforcement learning, drawn here by another seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from stagecraft.data.tables import strings
from stagecraft.environments.episode import chat_request
from stagecraft.environments.library import ENVIRONMENTS


def rows(*, environment: str, prompts: int, seed: int, **_: Any) -> dict[str, list[dict[str, Any]]]:
    """{"test": docs}: "prompt", "tools" and "episode" (the environment's row), the last two as JSON, and "material": every text of
    the row besides the prompt, files and solutions among them, which training text must not hold either."""
    documents = []
    for index in range(prompts):
        row = ENVIRONMENTS[environment].draw(Random(f"{seed}/{environment}/{index}"))
        own = {key: value for key, value in row.items() if key not in ("responses_create_params", "environment")}
        documents.append({"prompt": "\n".join(message["content"] for message in row["responses_create_params"]["input"]),
                          "tools": json.dumps(chat_request(row)[1]), "episode": json.dumps(row), "material": "\n".join(strings(own))})
    return {"test": documents}


def solved(document: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The environment's verdict on the conversation."""
    return {"solved": json.loads(results[0])["score"]}
