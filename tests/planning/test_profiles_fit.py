"""The profiles for GPUs: by the planner, what every training of theirs needs is there."""

from pathlib import Path

import pytest

from components.pretrain.dry_run import memory_of, needed
from components.pretrain.params import Params as Pretrain
from components.rl.params import Params as Rl
from components.sft.params import Params as Sft
from stagecraft.contract.params import load, read_profile
from stagecraft.planning.hardware import efficiencies, gpu
from stagecraft.planning.layout import Workload
from tests.planning.models import ROOT

PROFILES = [("super-120b", "B200"), ("h200", "H200")]


def in_packs(architecture, layout, ranks, tokens, mtp_depths):
    """Bytes of bfloat16 training in packs of so many tokens, one for each data-parallel rank."""
    return needed(architecture, layout, ranks, Workload(tokens, layout.data(ranks), mtp_depths), "bf16").total


@pytest.mark.parametrize("profile, kind", PROFILES)
def test_every_training_fits_its_gpus(profile, kind):
    path = Path(ROOT / "params" / f"{profile}.yaml")
    pods = read_profile(path)["cluster"]
    ranks = {stage: pods[stage]["nodes"] * pods[stage]["gpu"]["count"] for stage in ("pretrain", "sft", "rl")}
    pretrain, sft, rl = load(Pretrain, "pretrain", path), load(Sft, "sft", path), load(Rl, "rl", path)
    found = {f"pretrain from step {phase.start}": memory_of(pretrain, phase, ranks["pretrain"]).total for phase in pretrain.phases}
    found |= {f"sft {number}": in_packs(pretrain.architecture, sft.layout, ranks["sft"], stage.pack_tokens, sft.mtp_depths)
              for number, stage in enumerate(sft.stages)}
    found |= {f"rl {name}": in_packs(pretrain.architecture, part.layout, ranks["rl"], part.pack_tokens, part.healing.depths)
              for name, part in rl.parts.items()}
    usable = gpu(kind).memory * efficiencies().memory_use
    assert not {name: f"{bytes_ / 1e9:.1f} GB" for name, bytes_ in found.items() if bytes_ > usable}
