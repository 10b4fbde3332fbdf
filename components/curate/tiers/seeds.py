"""The labelled examples the quality classifier learns from: those shipped with the platform, or the user's."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from stagecraft.contract.errors import UserError

TIERS = (1, 2, 3, 4, 5)  # lowest to highest
FEWEST = 5  # examples of a tier; each fold of the cross-validation then has one
_DEFAULT = Path(__file__).with_name("seeds.jsonl")
_ROW = 'each line is an object such as {"text": "...", "tier": 3}'


@dataclass(frozen=True)
class Seed:
    """A text and its tier, 1 (junk) to 5 (teaches well)."""

    text: str
    tier: int


def default_seeds() -> list[Seed]:
    """The shipped examples: 25 short texts of each tier, written for this purpose."""
    return read_seeds(_DEFAULT)


def read_seeds(path: Path) -> list[Seed]:
    """Read examples from JSON lines; blank lines are skipped.

    Raises:
        UserError: no such file, a row that is no example (with file:line), or fewer than five examples of a tier.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the seeds: {error}", where=str(path), mend="give a JSONL file of texts with tiers") from None
    seeds = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    counts = Counter(seed.tier for seed in seeds)
    short = [tier for tier in TIERS if counts[tier] < FEWEST]
    if short:
        present = ", ".join(f"tier {tier}: {counts[tier]}" for tier in short)
        raise UserError(f"too few examples ({present})", where=str(path), mend=f"give at least {FEWEST} of every tier from 1 to 5")
    return seeds


def _parse(line: str, where: str) -> Seed:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=where, mend=_ROW) from None
    if not isinstance(row, dict):
        raise UserError("not an object", where=where, mend=_ROW)
    text, tier = row.get("text"), row.get("tier")
    if not isinstance(text, str) or not text.strip():
        raise UserError("`text` is missing, empty or no string", where=where, mend=_ROW)
    if type(tier) is not int or tier not in TIERS:
        raise UserError(f"`tier` is {tier!r}, not an integer from 1 to 5", where=where, mend=_ROW)
    return Seed(text, tier)
