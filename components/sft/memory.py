"""What each stage of fine-tuning needs of a GPU, by the planner."""

from __future__ import annotations

from components.sft.params import Params
from stagecraft.model.config import Architecture
from stagecraft.planning.fit import packs_memory
from stagecraft.planning.memory import Memory


def trainings(params: Params, architecture: Architecture, ranks: int) -> dict[str, Memory]:
    """Of the fullest GPU, by the stage's place in the profile."""
    names = ["sft", *(f"sft.later_stages.{number}" for number in range(len(params.later_stages)))]
    return {name: packs_memory(architecture, params.layout, ranks, stage.pack_tokens, params.mtp_depths)
            for name, stage in zip(names, params.stages, strict=True)}
