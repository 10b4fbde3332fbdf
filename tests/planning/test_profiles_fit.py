"""The profiles for GPUs: by the planner, what every training of theirs needs is there; a profile whose GPUs are too small is refused."""

import json
import re

import pytest
from ruamel.yaml import YAML

from components.pretrain import memory as pretrain
from components.pretrain.params import Params as Pretrain
from components.rl import memory as rl
from components.rl.params import Params as Rl
from components.sft import memory as sft
from components.sft.params import Params as Sft
from stagecraft.contract.cluster import parse_cluster
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load
from stagecraft.contract.preflight import check
from stagecraft.contract.stages import STAGES
from stagecraft.model.precision import PRECISIONS
from stagecraft.planning.fit import FAMILY, PRODUCT, kinds, packs_memory, usable
from stagecraft.planning.formats import formats
from tests.planning.models import ROOT


def read(profile):
    return YAML(typ="safe").load(ROOT / "params" / f"{profile}.yaml")


@pytest.mark.parametrize("profile, kind", [("super-120b", "B200"), ("h200", "H200")])
def test_every_training_fits_its_gpus(profile, kind):
    path = ROOT / "params" / f"{profile}.yaml"
    pods = parse_cluster(read(profile)["cluster"], profile)
    first = load(Pretrain, "pretrain", path)
    found = pretrain.trainings(first, pods["pretrain"].ranks(first.processes))
    for stage, params, needs in (("sft", Sft, sft.trainings), ("rl", Rl, rl.trainings)):
        of_it = load(params, stage, path)
        found |= needs(of_it, first.architecture, pods[stage].ranks(of_it.processes))
    found |= {f"healing after {name}, as if nothing were frozen": packs_memory(  # `of_it` is rl's
        first.architecture, part.layout, pods["rl"].ranks(of_it.processes), part.pack_tokens, part.healing.depths)
        for name, part in of_it.parts.items()}
    assert {"pretrain", "pretrain.long_context", "sft"} < set(found)
    assert not {where: f"{memory.total / 1e9:.1f} GB" for where, memory in found.items() if memory.total > usable(kind)}


@pytest.mark.parametrize(("stage", "change", "expected"), [
    ("pretrain", {"micro_batch": 8, "global_batch": 3072}, "pretrain: the fullest GPU needs "),
    ("pretrain", {"layout": {"tensor": 1, "pipeline": 1, "context": 1, "expert": 4}}, "pretrain: the fullest GPU needs "),
    ("sft", {"layout": {"tensor": 2, "pipeline": 1, "context": 16, "expert": 64}}, "sft.later_stages.0: the fullest GPU needs "),
    ("rl", {"layout": {"tensor": 4, "pipeline": 1, "context": 8, "expert": 2}}, "rl.stages.rlvr_1: the fullest GPU needs "),
    ("sft", {"packs_per_step": 63, "layout": {"tensor": 2, "pipeline": 1, "context": 16, "expert": 16}},
     "sft: packs_per_step: 63 microbatches per step cannot be split evenly over 2 "),
    ("rl", {"layout": {"tensor": 1, "pipeline": 3, "context": 1, "expert": 1}}, "rl.stages.rlvr_1.layout: 128 ranks cannot be divided "),
])
def test_what_the_gpus_of_a_cluster_cannot_do_is_refused_before_it_is_sent_there(stage, change, expected):
    profile = read("super-120b")
    check(json.dumps(profile), "p", list(STAGES))
    profile[stage].update(change)
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        check(json.dumps(profile), "p", list(STAGES))
    check(json.dumps(profile), "p", list(STAGES)[list(STAGES).index(stage) + 1:])  # which does not run


def test_the_labels_of_the_nodes_say_which_gpus_count():
    assert kinds({FAMILY: "hopper"}) == ("H100", "H200")
    assert kinds({FAMILY: "hopper", PRODUCT: "NVIDIA-H100-80GB-HBM3"}) == ("H100",)
    assert kinds({PRODUCT: "NVIDIA-GB200"}) == ("GB200",)
    assert kinds({FAMILY: "ampere"}) == kinds({}) == kinds({FAMILY: "hopper", PRODUCT: "NVIDIA-H100-NVL"}) == ()
    profile = read("h200")
    check(json.dumps(profile), "p", list(STAGES))
    profile["pretrain"] |= {"micro_batch": 16}
    check(json.dumps(profile), "p", list(STAGES))  # on an H200 it fits
    profile["cluster"]["pretrain"]["node_selector"] |= {PRODUCT: "NVIDIA-H100-80GB-HBM3"}
    with pytest.raises(UserError, match=r"^pretrain: the fullest GPU needs 98\.9 GB, .*; H100 has at most 85\.9 - divide "):
        check(json.dumps(profile), "p", list(STAGES))
    profile["cluster"]["pretrain"]["gpu"]["count"] = 0
    check(json.dumps(profile), "p", list(STAGES))  # on such a node's processors


def test_every_precision_of_training_is_one_of_the_planner():
    for precision in PRECISIONS:
        assert formats("training", precision).rest
