"""The parameters of the curate stage, with what makes a value impossible."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated

from pydantic import Field

from stagecraft.contract.params import params
from stagecraft.data.tasks import check_families
from stagecraft.data.tokenizer import SMALLEST_VOCABULARY

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


@params
class QualityParams:
    """Bounds of the quality rules; a document outside one of them is removed and counted under the rule's name."""

    min_characters: Positive
    max_characters: Positive
    max_line_characters: Positive
    min_letter_share: Share
    min_ascii_share: Share
    max_repeated_share: Share


@params
class TaskParams:
    """The synthetic tasks: rows per set; by family the share of flawed SFT demonstrations and its weight among the SFT rows (1)."""

    sft_rows: Positive
    rl_rows: Positive
    heldout_rows: Positive
    flawed: Annotated[dict[str, Share], Field(min_length=1)]
    sft_weights: dict[str, Annotated[float, Field(gt=0)]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_families([*self.flawed, *self.sft_weights])
        for family in self.sft_weights:
            if family not in self.flawed:
                raise ValueError(f"sft_weights names {family!r}, which `flawed` leaves out")
        if min(self.sft_rows, self.rl_rows, self.heldout_rows) < len(self.flawed):
            raise ValueError(f"fewer rows than the {len(self.flawed)} task families")


@params
class Params:
    """Parameters of the stage; `input` is `system` (the text that is on every machine) or a directory."""

    seed: int
    input: Annotated[str, Field(min_length=1)]
    sample_bytes: Positive
    quality: QualityParams
    near_duplicate_similarity: Annotated[float, Field(ge=0.5, le=1)]
    heldout_share: Annotated[float, Field(gt=0, lt=0.5)]
    vocab_size: Positive
    tokenizer_bytes: Positive
    max_length: Positive
    tasks: TaskParams

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise ValueError(f"vocab_size {self.vocab_size} is too small: bytes and special tokens alone take {SMALLEST_VOCABULARY}")
