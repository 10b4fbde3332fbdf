"""What each stage of reinforcement learning needs of one of its trainer's GPUs, by the planner."""

from __future__ import annotations

from components.rl.params import Params
from stagecraft.model.config import Architecture
from stagecraft.planning.fit import packs_memory
from stagecraft.planning.memory import Memory


def trainings(params: Params, architecture: Architecture, ranks: int) -> dict[str, Memory]:
    """Of the fullest GPU, by the stage's place in the profile. (Healing, where all but the MTP block is frozen, needs less.)"""
    return {f"rl.stages.{name}": packs_memory(architecture, part.layout, ranks, part.pack_tokens, mtp_depths=0)
            for name, part in params.parts.items()}
