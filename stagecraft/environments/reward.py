"""What a verifier answers: one score and the named parts it came from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reward:
    """The reward of one completion.

    Args:
        score: in [0, 1]; 1 means verified correct. Every verifier of this package is exact, so it answers 0 or 1.
        parts: named findings in [0, 1] (`finished`, `format`, `correct`, ...), for logs and reports.
    """

    score: float
    parts: dict[str, float] = field(default_factory=dict)
