"""Fresh task prompts to ask the server: drawn here, because a served model has no corpus beside it."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from stagecraft.data.tasks import FAMILIES


def draw_rows(per_family: int, seed: int, families: Iterable[str] = FAMILIES) -> list[dict[str, Any]]:
    """Task rows, `per_family` of every one of `families`, families in turn; the same seed gives the same."""
    streams = {family: Random(f"serve/{seed}/{family}") for family in families}
    return [FAMILIES[family](random).row(f"serve-{family}-{number}", family)
            for number in range(per_family) for family, random in streams.items()]
