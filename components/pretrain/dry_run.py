"""`python -m components.pretrain --dry-run`: what a run of this profile would be, without data, devices or a step.

The model is built on the meta device, so that its parameters are counted from megatron-core's own modules, not from formulas.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import lcm
from pathlib import Path

from stagecraft.megatron_cpu import on_meta

import torch
from megatron.core.parallel_state import RankGenerator

from components.pretrain.memory import of_phase
from components.pretrain.params import Params
from stagecraft.contract.cluster import read_cluster
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, params_path
from stagecraft.engine import parallel
from stagecraft.engine.layout import Layout as Divided
from stagecraft.model.build import build_model, pipeline_stages, transformer_config
from stagecraft.model.hardware import FAMILIES, Hardware
from stagecraft.model.ladder import Resolved, ladder, refuse_emulation, resolve
from stagecraft.model.precision import as_yaml, recipe
from stagecraft.model.stage_recipe import StageRecipe
from stagecraft.planning.fit import FAMILY, MEMBERS, usable
from stagecraft.planning.parameters import count_parameters

AGAIN = {"none": "none", "moe": "those of the MoE layers", "full": "all"}
ORDER = "tp-cp-ep-dp-pp"  # of ranks, megatron-core's default


def main(ranks: int | None, family: str | None) -> None:
    """Print it.

    Args:
        ranks: None for the profile's `processes`, or, where torchrun gives the ranks, the fewest that all phases can use.
        family: of GPUs, or "cpu"; None for the nodes' that the profile asks a cluster for.

    Raises:
        UserError: the profile or the layout is impossible, or the profile refuses what would compute on such GPUs.
    """
    params = load(Params, "pretrain")
    family = (family or read_cluster(Path(params_path()))["pretrain"].node_selector.get(FAMILY, "cpu")).casefold()
    for line in report(params, ranks or (params.processes if params.processes > 1 else fewest_ranks(params)), family):
        print(line)


def fewest_ranks(params: Params) -> int:
    """The fewest ranks that the layouts of all phases divide; what batches these cannot share, more cannot either."""
    layouts = [params.layout_of(phase) for phase in params.phases]
    return lcm(*(size for layout in layouts for size in (layout.model, layout.pipeline * layout.expert)))


def report(params: Params, ranks: int, family: str) -> Iterator[str]:
    """The lines: parameters, schedule, ranks, memory, precision of every module, recipe."""
    a = params.architecture
    params.check_ranks(ranks)
    hardware, layers = resolved(params, family)
    total, mtp = count_on_meta(params)
    yield f"# {Path(params_path()).name}: {count(total)} parameters, {count(count_parameters(a).active)} active, MTP +{count(mtp)}"
    yield "\n## Phases"
    for phase in params.phases:
        steps = sum(len(stretch.steps) for stretch in phase.stretches)
        batches = " to ".join(f"{batch:,}" for batch in sorted({min(phase.batches), max(phase.batches)}))
        tokens = phase.rows * phase.length
        yield (f"{phase.blend}: from step {phase.start:,}, {steps:,} steps of {batches} rows, "
               f"{count(tokens)} tokens in rows of {phase.length:,}")
    for layout, of_it in groupby(params.phases, params.layout_of):
        yield f"\n## Layout of {ranks} ranks from step {next(of_it).start} on"
        for number, pattern in enumerate(pipeline_stages(a.hybrid_override_pattern, layout.pipeline)):
            yield f"layers of pipeline {number}: {pattern}"
        yield f"activations computed again in the backward pass: {AGAIN[layout.recompute]}"
        experts = a.n_routed_experts // layout.expert
        for rank, place in enumerate(places(layout, ranks)):
            yield (f"rank {rank}: tensor {place['tp']}, pipeline {place['pp']}, context {place['cp']}, "
                   f"data {place['dp']}, experts {place['ep'] * experts}-{(place['ep'] + 1) * experts - 1}")
    by_phase = {phase: of_phase(params, phase, ranks) for phase in params.phases}
    memory = max(by_phase.values(), key=lambda needed: needed.total)
    where = "rank" if hardware.capability is None else "GPU"
    yield f"\n## Memory of the fullest {where} in the phase that needs most, by docs/planning.md: {size(memory.total)}"
    for part in ("weights", "gradients", "optimizer", "activations", "logits"):
        yield f"{part}: {size(getattr(memory, part))}"
    for phase, needed in by_phase.items():
        yield f"in all, {phase.blend} from step {phase.start:,} on: {size(needed.total)}"
    for name in MEMBERS.get(family, ()):
        yield f"usable on {name}: {size(usable(name))}{'' if memory.total <= usable(name) else ', which is too little'}"
    yield f"\n## Precision of every module on {hardware.name}, as the recipe names it -> what computes"
    for layer in layers:
        yield f"{layer.path} ({layer.layer_class}): {layer.requested} -> {layer.actual}"
    yield "\n## The recipe, as --te-precision-config-file takes it"
    yield as_yaml(recipe(a, params.precision))


def count(number: float) -> str:
    """`120.67B`, `3.41M`."""
    unit, letter = next(((unit, letter) for unit, letter in ((1e12, "T"), (1e9, "B")) if number >= unit), (1e6, "M"))
    return f"{number / unit:.2f}{letter}"


def size(number: float) -> str:
    """Bytes: `176.2 GB`, `24.6 MB`."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def resolved(params: Params, family: str) -> tuple[Hardware, list[Resolved]]:
    """Every linear layer on such a machine, with Transformer Engine if it is a GPU.

    Raises:
        UserError: the family is unknown, or the profile's `emulate` refuses what would compute.
    """
    if family not in ("cpu", *FAMILIES):
        raise UserError(f"family of GPUs {family!r} is unknown", where=f"--family, or {FAMILY} in the profile",
                        mend=f"choose one of cpu, {', '.join(FAMILIES)}")
    mtp, dtype = bool(params.mtp_depths), getattr(torch, params.dtype)
    formats = StageRecipe(params.architecture, params.precision).formats(mtp=mtp)
    hardware = Hardware.planned(None if family == "cpu" else family, formats, dtype)
    layers, *_ = [list(resolve(params.architecture, params.precision, hardware, mtp=mtp, dtype=dtype, tensor=layout.tensor))
                  for layout in params.layouts]
    if not params.emulate:
        refuse_emulation(ladder(layers), hardware)
    return hardware, layers


def count_on_meta(params: Params) -> tuple[int, int]:
    """(parameters without the MTP block, parameters of the MTP block) of megatron-core's model, whole on one rank."""
    parallel.initialize(params.seed)
    try:
        config = transformer_config(params.architecture, precision=params.precision, mtp_depths=params.mtp_depths,
                                    perform_initialization=False, dtype=torch.bfloat16, transformer_engine=False)
        with on_meta():
            model = build_model(params.architecture, config, params.sequence_length)
    finally:
        parallel.shutdown()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    mtp = sum(size for name, size in sizes.items() if name.startswith("mtp."))
    return sum(sizes.values()) - mtp, mtp


def places(layout: Divided, ranks: int) -> list[dict[str, int]]:
    """Of every rank its place in its tensor, pipeline, context, data and expert parallel groups, as megatron-core forms them."""
    found: list[dict[str, int]] = [{} for _ in range(ranks)]
    dense = RankGenerator(tp=layout.tensor, ep=1, dp=layout.data(ranks), pp=layout.pipeline, cp=layout.context, order=ORDER)
    sparse = RankGenerator(tp=1, ep=layout.expert, dp=ranks // (layout.expert * layout.pipeline), pp=layout.pipeline, cp=1, order=ORDER)
    for generator, kind in ((dense, "tp"), (dense, "pp"), (dense, "cp"), (dense, "dp"), (sparse, "ep")):
        for group in generator.get_ranks(kind):
            for place, rank in enumerate(group):
                found[rank][kind] = place
    return found
