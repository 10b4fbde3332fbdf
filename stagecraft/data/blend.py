"""blend.json of the corpus: by phase, the token files and their weights."""

from __future__ import annotations

import json
from pathlib import Path

from stagecraft.contract.errors import UserError


def read_blend(corpus: Path, phase: str) -> list[tuple[Path, float]]:
    """(token file without suffix, weight) of a phase.

    Args:
        phase: `phase1`, `phase2`, `long` or `heldout`.

    Raises:
        UserError: blend.json is missing or lists nothing for `phase`.
    """
    path = corpus / "blend.json"
    try:
        return [(corpus / prefix, float(weight)) for prefix, weight in json.loads(path.read_text())[phase]]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no blend {phase!r}: {type(error).__name__}", where=str(path), mend="run the curate stage again") from None
