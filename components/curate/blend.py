"""The blends: how much of each category and quality tier a phase of pre-training sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from components.curate.params import PhaseParams
from stagecraft.contract.errors import UserError

Group = tuple[str, int]  # category, tier


@dataclass(frozen=True)
class Portion:
    """A group's part of a phase: `weight` sums to 1 over the phase; `epochs` is how often its tokens are seen, more than the most that is
    allowed only where all groups together are too small for the phase."""

    weight: float
    epochs: float


def blend(name: str, phase: PhaseParams, tokens: Mapping[Group, int], max_epochs: float) -> dict[Group, Portion]:
    """Divide a phase over the groups.

    Categories get their weights, a category's tiers their shares by tokens times the tier's factor. A group that would be
    seen more than `max_epochs` times is capped there, and what it loses goes to the others in proportion to their weights.

    Args:
        tokens: group -> tokens there are, all positive.

    Raises:
        UserError: a category with a weight has no document, or none in a tier whose factor is not 0.
    """
    usable = {group: count * phase.tiers[group[1] - 1] for group, count in tokens.items() if phase.tiers[group[1] - 1] > 0}
    mass: dict[str, float] = {}
    for (category, _), amount in usable.items():
        mass[category] = mass.get(category, 0) + amount
    wanted = phase.categories or mass
    for category in wanted:
        if category not in mass:
            present = ", ".join(f"{each} ({sum(count for group, count in tokens.items() if group[0] == each)} tokens)"
                                for each in sorted({group[0] for group in tokens}))
            raise UserError(f"category `{category}` has a weight but no document of a tier that counts; there is {present}",
                            where=f"curate.blend.{name}.categories", mend="take the weight away, or give such documents")
    if not wanted:
        raise UserError("no document is of a tier that counts", where=f"curate.blend.{name}.tiers", mend="give other tiers a factor")
    raw = {group: wanted[group[0]] * amount / mass[group[0]] for group, amount in usable.items() if group[0] in wanted}
    return _cap(raw, {group: max_epochs * tokens[group] / phase.tokens for group in raw}, tokens, phase.tokens)


def _cap(raw: dict[Group, float], limits: dict[Group, float], tokens: Mapping[Group, int], total: int) -> dict[Group, Portion]:
    """Scale the free groups until none is above its limit. If all the limits together are less than the phase, all are at them."""
    capped: dict[Group, float] = {}
    free = dict(raw)
    while free:
        scale = (1 - sum(capped.values())) / sum(free.values())
        over = {group for group, weight in free.items() if weight * scale > limits[group]}
        if not over:
            capped |= {group: weight * scale for group, weight in free.items()}
            break
        for group in over:
            capped[group] = limits[group]
            del free[group]
    whole = sum(capped.values())
    return {group: Portion(weight / whole, weight / whole * total / tokens[group]) for group, weight in sorted(capped.items())}


def entries(portions: Mapping[Group, Portion], share: float = 1.0) -> list[list[Any]]:
    """As blend.json has them: [[prefix, weight], ...], the weights summing to `share`."""
    return [[prefix(group), share * portion.weight] for group, portion in portions.items()]


def prefix(group: Group) -> str:
    """The token files of a group, relative to the corpus and without suffix."""
    return f"tokens/{group[0]}-tier{group[1]}"


def group_of(name: str) -> Group | None:
    """The group whose token files have this prefix; None for those of no group (held out, long-document questions)."""
    category, mark, tier = name.removeprefix("tokens/").rpartition("-tier")
    return (category, int(tier)) if mark else None
