"""What a side-by-side run asks for, checked before anything is started."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from components.evaluate.params import Benchmarks
from stagecraft.contract.bounded import Positive
from stagecraft.contract.params import params
from stagecraft.inference.server_settings import Settings


@params
class Plan:
    """How subjects are compared.

    Attributes:
        benchmarks: what is asked.
        server: what checkpoints are served with; endpoints are taken as they are.
        rounds: how often every subject is measured; two or more, for the spread between rounds is the error of the speed.
        concurrency: requests under way at a time.
        seed: of sampled answers and made prompts; every round has a seed of its own.
        confidence: of the intervals.
        together: checkpoints are served all at once, idle but for their turns; else each is started for its turn, which takes less memory.
        force: compare also where the protocols differ; the report says which fields do.
    """

    benchmarks: Benchmarks
    server: Settings
    rounds: Annotated[int, Field(ge=2)]
    concurrency: Positive
    seed: int
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    together: bool
    force: bool
