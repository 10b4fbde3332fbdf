"""How checkpoints are merged, as parameters; apart from the merging, so that reading a profile needs no torch."""

from __future__ import annotations

from typing import Literal

from stagecraft.contract.params import params
from stagecraft.engine.schedule import Count, Positive


@params
class Merging:
    """Weights every `every` steps (0: none), `window` of them in a merge; `rows` held-out rows compare; `use` says what goes on."""

    every: Count
    window: Positive
    rows: Positive
    use: Literal["better", "never"]
