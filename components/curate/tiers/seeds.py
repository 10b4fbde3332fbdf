"""The labelled texts that the quality classifier learns from: ours, or a file of the user's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from stagecraft.contract.errors import UserError

TIERS = range(1, 6)
_FEWEST = 5  # per tier


@dataclass(frozen=True)
class Seed:
    """A text and its quality tier, 1 (worthless) to 5 (as in a good textbook)."""

    text: str
    tier: int


def default_seeds() -> list[Seed]:
    """The seeds that come with the stage."""
    return read_seeds(Path(__file__).with_name("seeds.jsonl"))


def read_seeds(path: Path) -> list[Seed]:
    """Seeds from JSON lines with `text` and `tier`.

    Raises:
        UserError: the file is missing, a line is no seed, or a tier has fewer than five.
    """
    mend = 'one JSON object per line: {"text": "...", "tier": 1 to 5}'
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read seeds: {getattr(error, 'strerror', None) or error}", where=str(path), mend=mend) from None
    seeds = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                seed = Seed(row["text"], row["tier"])
            except (ValueError, KeyError, TypeError):
                raise UserError("not a seed", where=f"{path}:{number}", mend=mend) from None
            if not isinstance(seed.text, str) or not seed.text.strip() or seed.tier not in TIERS:
                raise UserError("not a seed: an empty text, or a tier outside 1 to 5", where=f"{path}:{number}", mend=mend)
            seeds.append(seed)
    counts = Counter(seed.tier for seed in seeds)
    for tier in TIERS:
        if counts[tier] < _FEWEST:
            raise UserError(f"{counts[tier]} seeds of tier {tier}", where=str(path), mend=f"give at least {_FEWEST} of each tier")
    return seeds
