"""What a step let through and what it removed: counts, and samples that do not depend on the order of the documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

SAMPLES = 3  # per reason


@dataclass
class Tally:
    """The account of one step.

    Args:
        step: its name.
        documents, bytes: that came in.
        removed: reason -> [documents, UTF-8 bytes].
        samples: reason -> the removed documents with the smallest ids: id, document, why, text (its beginning).
        counts: whatever else the step counts, by name.
    """

    step: str
    documents: int = 0
    bytes: int = 0
    removed: dict[str, list[int]] = field(default_factory=dict)
    samples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def take(self, size: int) -> None:
        """One document of `size` bytes comes in."""
        self.documents += 1
        self.bytes += size

    def remove(self, reason: str, size: int, sample: dict[str, str]) -> None:
        """One of those that came in is removed."""
        documents, total = self.removed.get(reason, (0, 0))
        self.removed[reason] = [documents + 1, total + size]
        self._keep(reason, [sample])

    def cut(self, reason: str, size: int, sample: dict[str, str]) -> None:
        """`size` bytes of one of those that came in are cut, and the document stays."""
        documents, total = self.removed.get(reason, (0, 0))
        self.removed[reason] = [documents, total + size]
        self._keep(reason, [sample])

    def count(self, name: str, amount: int = 1) -> None:
        """Count something by name."""
        self.counts[name] = self.counts.get(name, 0) + amount

    def add(self, other: Tally) -> None:
        """Add the account of the same step on other documents."""
        self.documents += other.documents
        self.bytes += other.bytes
        for reason, (documents, size) in other.removed.items():
            mine = self.removed.get(reason, (0, 0))
            self.removed[reason] = [mine[0] + documents, mine[1] + size]
        for reason, samples in other.samples.items():
            self._keep(reason, samples)
        self.counts = dict(Counter(self.counts) + Counter(other.counts))

    @property
    def removed_documents(self) -> int:
        """Documents removed, for whatever reason."""
        return sum(documents for documents, _ in self.removed.values())

    @property
    def removed_bytes(self) -> int:
        """UTF-8 bytes removed, for whatever reason."""
        return sum(size for _, size in self.removed.values())

    def plain(self) -> dict[str, Any]:
        """As plain data, keys sorted."""
        return {key: dict(sorted(value.items())) if isinstance(value, dict) else value for key, value in asdict(self).items()}

    def _keep(self, reason: str, samples: list[dict[str, str]]) -> None:
        kept = [*self.samples.get(reason, ()), *samples]
        self.samples[reason] = sorted(kept, key=lambda sample: sample["id"])[:SAMPLES]


def merge(tallies: Iterable[Tally]) -> list[Tally]:
    """The accounts of all shards as one per step, steps in the order in which they first appear."""
    steps: dict[str, Tally] = {}
    for tally in tallies:
        steps.setdefault(tally.step, Tally(tally.step)).add(tally)
    return list(steps.values())
