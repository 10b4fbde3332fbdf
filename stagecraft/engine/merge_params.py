"""Parameters of checkpoint merging. They are apart from the merging itself, so that reading a profile needs no torch."""

from __future__ import annotations

from typing import Literal

from stagecraft.contract.bounded import Count, Positive
from stagecraft.contract.params import params


@params
class Merging:
    """Merging of checkpoints.

    Args:
        every: steps between the weights that are kept; 0: no merging.
        window: weights in a merge.
        use: whether merged weights replace the last ones: "better", if their held-out loss is lower, or "never".
    """

    every: Count
    window: Positive
    use: Literal["better", "never"]
