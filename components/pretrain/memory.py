"""What each phase of pre-training needs of a GPU, by the planner."""

from __future__ import annotations

from components.pretrain.params import Params
from stagecraft.engine.phases import Phase
from stagecraft.planning.fit import engine_memory
from stagecraft.planning.layout import Workload
from stagecraft.planning.memory import Memory


def trainings(params: Params, ranks: int) -> dict[str, Memory]:
    """Of the fullest GPU, by the section of the profile whose layout and rows it is; of several phases in one, the one that needs most."""
    found: dict[str, Memory] = {}
    for phase in params.phases:
        where, memory = params.section_of(phase), of_phase(params, phase, ranks)
        if where not in found or memory.total > found[where].total:
            found[where] = memory
    return found


def of_phase(params: Params, phase: Phase, ranks: int) -> Memory:
    """Of the fullest GPU in this phase."""
    work = Workload(phase.length, max(phase.batches), params.mtp_depths)
    return engine_memory(params.architecture, params.layout_of(phase), ranks, work, params.precision, phase.micro)
