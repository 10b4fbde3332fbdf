"""The funnel: what came into each step over all shards, what it removed and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.curate.shards.store import read_accounts
from components.curate.shards.tally import Tally, merge
from stagecraft.contract.errors import UserError


@dataclass
class Funnel:
    """The accounts of a run.

    Args:
        steps: in order.
        broken: file or row -> why it could not be read.
        matches: of documents with evaluation sets.
        clusters: the largest sets of duplicates.
        overlaps: of held-out documents with those trained on.
    """

    steps: list[Tally]
    broken: dict[str, str] = field(default_factory=dict)
    matches: list[dict[str, Any]] = field(default_factory=list)
    clusters: list[dict[str, Any]] = field(default_factory=list)
    overlaps: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, shards: Sequence[Path]) -> Funnel:
        """Put the accounts of the shards together."""
        accounts = [read_accounts(directory) for directory in shards]
        broken = {name: why for _, part, _ in accounts for name, why in part.items()}
        matches = sorted((match for _, _, part in accounts for match in part), key=lambda match: (match["id"], match["set"], match["row"]))
        return cls(merge(tally for steps, _, _ in accounts for tally in steps), dict(sorted(broken.items())), matches)

    @property
    def left(self) -> int:
        """Documents left after the last step."""
        return self.steps[-1].documents - self.steps[-1].removed_documents

    def assert_left(self, where: str) -> None:
        """Refuse to go on with nothing.

        Raises:
            UserError: nothing could be read, or nothing is left; it names the rule that removed most.
        """
        if not self.steps[0].documents:
            why = next((f"{name}: {why}" for name, why in self.broken.items()), "no text")
            raise UserError(f"no readable text ({why})", where=where, mend="give a directory of text, JSON lines or Parquet files")
        if not self.left:
            rule, (count, _) = max(((reason, removed) for step in self.steps for reason, removed in step.removed.items()),
                                   key=lambda item: item[1])
            raise UserError(f"no document is left; `{rule}` removed most, {count} of {self.steps[0].documents}", where="curate",
                            mend="give more or other text, or relax that rule")

    def metrics(self) -> dict[str, float]:
        """`removed_<step>`: documents removed by each step; broken files; documents with a contamination match."""
        return {**{f"removed_{step.step}": step.removed_documents for step in self.steps}, "broken_files": len(self.broken)}
