"""The configuration of a canonical checkpoint, for all who read one: it is there, it is JSON, it is of the architecture we know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stagecraft.contract.errors import UserError

MEND = "give a nemotron_h checkpoint, such as artifacts/aligned"


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
