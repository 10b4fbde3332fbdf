"""What all know of a canonical checkpoint: its configuration is there, is JSON and of our architecture; which files are the tokenizer's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError

MEND = "give a nemotron_h checkpoint, such as artifacts/aligned"
TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")  # how the names of its files begin


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a canonical checkpoint.

    Raises:
        UserError: it is missing or unreadable, or of another architecture than `nemotron_h`.
    """
    try:
        config = json.loads((directory / "config.json").read_text())
    except FileNotFoundError:
        raise UserError("not a checkpoint: no config.json", where=str(directory), mend=MEND) from None
    except (OSError, ValueError) as error:
        raise UserError(f"unreadable config.json: {error}", where=str(directory), mend=MEND) from None
    architecture = config.get("model_type") if isinstance(config, dict) else None
    if architecture != "nemotron_h":
        raise UserError(f"config.json is of architecture {architecture!r}", where=str(directory), mend=MEND)
    return config
