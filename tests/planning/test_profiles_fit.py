"""The profiles for GPUs: by the planner, what every training of theirs needs is there."""

from dataclasses import replace
from pathlib import Path

import pytest

from components.pretrain.dry_run import memory_of
from components.pretrain.params import Params as Pretrain
from components.rl.params import Params as Rl
from components.sft.params import Params as Sft
from stagecraft.contract.params import load, read_profile
from stagecraft.planning.architecture import nemotron_h
from stagecraft.planning.formats import formats
from stagecraft.planning.hardware import efficiencies, gpu
from stagecraft.planning.layout import Layout, Workload
from stagecraft.planning.memory import State, training_memory
from tests.planning.models import ROOT

PROFILES = [("super-120b", "B200"), ("h200", "H200")]


def needed(architecture, divided, ranks, tokens, mtp_depths):
    """Gigabytes of bfloat16 training in rows or packs of so many tokens."""
    data, recipe = divided.data(ranks), formats("training", "bf16")
    layout = Layout(tp=divided.tensor, pp=divided.pipeline, cp=divided.context, ep=divided.expert, dp=data, recompute=divided.recompute)
    state = replace(State.of(recipe), logit=4.0, whole=True)
    return training_memory(nemotron_h(architecture), Workload(tokens, data, mtp_depths), layout, recipe, state).total


@pytest.mark.parametrize("profile, kind", PROFILES)
def test_every_training_fits_its_gpus(profile, kind):
    path = Path(ROOT / "params" / f"{profile}.yaml")
    pods = read_profile(path)["cluster"]
    ranks = {stage: pods[stage]["nodes"] * pods[stage]["gpu"]["count"] for stage in ("pretrain", "sft", "rl")}
    pretrain, sft, rl = load(Pretrain, "pretrain", path), load(Sft, "sft", path), load(Rl, "rl", path)
    found = {f"pretrain from step {phase.start}": memory_of(pretrain, phase, ranks["pretrain"]).total for phase in pretrain.phases}
    found |= {f"sft {number}": needed(pretrain.architecture, sft.layout, ranks["sft"], stage.pack_tokens, sft.mtp_depths)
              for number, stage in enumerate(sft.stages)}
    found |= {f"rl {name}": needed(pretrain.architecture, part.layout, ranks["rl"], part.pack_tokens, part.healing.depths)
              for name, part in rl.parts.items()}
    usable = gpu(kind).memory * efficiencies().memory_use
    assert not {name: f"{bytes_ / 1e9:.1f} GB" for name, bytes_ in found.items() if bytes_ > usable}
