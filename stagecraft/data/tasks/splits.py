"""Draws the three sets of task rows: held-out, RL and SFT, no prompt in two of them and none twice."""

from __future__ import annotations

import json
from itertools import accumulate
from random import Random
from typing import Any

from stagecraft.contract.errors import UserError
from stagecraft.data.tasks.families import FAMILIES, FLAWS, GOOD, PROMPTS
from stagecraft.data.tasks.task import Task

SPLITS = ("heldout", "rl", "sft")  # the held-out set is drawn first: it does not change when the others grow
_TRIES = 1000
_DRAWN = 0.75  # of a family's prompts at most: the last ones, among them the rarely drawn, would take more tries than that


def check_families(names: list[str]) -> None:
    """Raises ValueError for a name that is no task family."""
    unknown = sorted(set(names) - set(FAMILIES))
    if unknown:
        raise ValueError(f"unknown task family {unknown[0]!r}; there are {', '.join(FAMILIES)}")


def divide_rows(counts: dict[str, int], flawed: dict[str, float], sft_weights: dict[str, float]) -> dict[str, dict[str, int]]:
    """Rows of each family: split -> family -> how many; the arguments are those of `draw_splits`.

    Raises:
        ValueError: an unknown family, or one that has fewer prompts than that; it says how many rows the family can give.
    """
    check_families([*flawed, *sft_weights])
    parts = {split: _divide(counts[split], dict.fromkeys(flawed, 1.0)) for split in SPLITS}
    parts["sft"] = _divide(counts["sft"], {family: sft_weights.get(family, 1.0) for family in flawed})
    for family in flawed.keys() & PROMPTS.keys():
        wanted, most = sum(parts[split][family] for split in SPLITS), int(_DRAWN * PROMPTS[family])
        if wanted > most:
            raise ValueError(f"task family {family!r} can give {most} rows, no prompt twice, and {wanted} are asked of it; "
                             "ask for fewer, or give it a smaller weight in sft_weights")
    return parts


def draw_splits(counts: dict[str, int], flawed: dict[str, float], seed: int,
                sft_weights: dict[str, float] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Generate the task rows of every split.

    Args:
        counts: rows per split (keys `heldout`, `rl`, `sft`), divided evenly over the families but for `sft_weights`.
        flawed: family -> share of its SFT demonstrations in the flawed style; its keys are the families in use.
        seed: each family draws from its own stream of it, so adding a family leaves the others' rows as they are.
        sft_weights: family -> its weight in the division of the SFT rows; 1 where it is not named.

    Returns:
        split -> rows, shuffled. Only rows of `sft` have `demonstration` and `mode` (`good`, or the flaw's name).

    Raises:
        UserError: a family's prompts are used up all the same.
        ValueError: as for `divide_rows`.
    """
    parts = divide_rows(counts, flawed, sft_weights or {})
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for family in flawed:
        random = Random(f"{seed}/{family}")
        seen: set[str] = set()
        for split in SPLITS:
            for _ in range(parts[split][family]):
                task = _fresh(family, random, seen)
                rows[split].append(task.row(f"{family}-{len(seen) - 1:06d}", family))
                if split == "sft":
                    is_flawed = random.random() < flawed[family]
                    rows[split][-1]["demonstration"] = task.flawed if is_flawed else task.good
                    rows[split][-1]["mode"] = FLAWS[family][0] if is_flawed else GOOD
    for split in SPLITS:
        Random(f"{seed}/{split}").shuffle(rows[split])
    return rows


def prompt_key(row: dict[str, Any]) -> str:
    """What makes a prompt: the messages and the tools, as canonical JSON."""
    return json.dumps([row["messages"], row.get("tools", [])], sort_keys=True)


def assert_disjoint(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Raises UserError if a prompt occurs twice, in one split or in two."""
    where: dict[str, str] = {}
    for split, members in rows.items():
        for row in members:
            other = where.setdefault(prompt_key(row), f"{split} row {row['id']}")
            if other != f"{split} row {row['id']}":
                raise UserError(f"the prompt of {row['id']} occurs in {other} as well", where=f"tasks/{split}.jsonl",
                                mend="remove one of the two rows")


def _divide(count: int, weights: dict[str, float]) -> dict[str, int]:
    """`count` in whole parts by weight: cumulative sums rounded, so that the parts add up."""
    names, total = list(weights), sum(weights.values())
    bounds = [0, *(round(count * part / total) for part in accumulate(weights.values()))]
    return {name: bounds[index + 1] - bounds[index] for index, name in enumerate(names)}


def _fresh(family: str, random: Random, seen: set[str]) -> Task:
    for _ in range(_TRIES):
        task = FAMILIES[family](random)
        key = task.prompt
        if key not in seen:
            seen.add(key)
            return task
    raise UserError(f"task family {family!r} has no fresh prompts left after {len(seen)}", where="curate.tasks",
                    mend="ask for fewer task rows")
