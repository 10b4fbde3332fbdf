"""Parameters of the quantize stage, as params.yaml explains them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from stagecraft.contract.bounded import AboveZero, Count, Positive, Seed, Share
from stagecraft.contract.params import params


@params
class Calibration:
    """What the activations' scales are measured on, and what the divergence is."""

    samples: Positive
    heldout_samples: Positive
    length: Annotated[int, Field(gt=1)]
    batch: Positive
    conversations: Share
    seed: Seed


@params
class Search:
    """What the formats of the NVFP4 checkpoint are chosen from, and by what measure."""

    enabled: bool
    effective_bits: Annotated[float, Field(gt=0, le=32)]
    formats: list[Literal["nvfp4", "fp8", "bf16"]]
    excluded: Literal["ignore", "count"]
    cost: Literal["bits", "time"]
    gpu: Literal["h100", "h200", "b200", "gb200", "gb300"]
    tokens: Positive
    frontier: Count

    @model_validator(mode="after")
    def _usable(self) -> Search:
        if not {"nvfp4", "fp8"} & set(self.formats) or len(set(self.formats)) < len(self.formats):
            raise ValueError(f"formats {self.formats} hold nothing to quantise to, or something twice")
        if self.frontier == 1:
            raise ValueError("a frontier of one budget is none; 0 leaves it out")
        if self.enabled and self.frontier and not {"nvfp4", "fp8"} <= set(self.formats):
            raise ValueError(f"a frontier needs both nvfp4 and fp8 among the formats {self.formats}; 0 leaves it out")
        return self


@params
class Distillation:
    """How the student learns and how it is judged; params.yaml says what each means."""

    steps: Count
    lr: AboveZero
    batch: Positive
    micro_batch: Positive
    rollouts_share: Share
    clip: AboveZero
    heldout: Annotated[int, Field(gt=1)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    prompts: Annotated[int, Field(gt=1)]
    max_new_tokens: Positive
    seed: Seed


@params
class Params:
    """Parameters of the quantize stage; params.yaml says what each means."""

    calibration: Calibration
    nvfp4_scales: Literal["least_squares", "max"]
    search: Search
    distil: Distillation
