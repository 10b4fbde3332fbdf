"""The section `cluster` of a profile: complete, strict, and one line per mistake."""

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity

from stagecraft.contract.cluster import parse_cluster, read_cluster
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import read_profile
from stagecraft.contract.stages import STAGES

ROOT = Path(__file__).parents[2]
GOOD = read_profile(ROOT / "params.yaml")["cluster"]


@pytest.mark.parametrize("profile", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))], ids=lambda path: path.name)
def test_every_profile_says_it_for_every_stage(profile):
    assert list(read_cluster(profile)) == list(STAGES)


@pytest.mark.parametrize(("change", "expected"), [
    ({"memory": "8 Gi"}, "p: cluster.sft.memory: no amount of memory, such as 8Gi (found '8 Gi')"),
    ({"memory": 8}, "p: cluster.sft.memory: Input should be a valid string (found 8)"),
    ({"cpu": "two"}, "p: cluster.sft.cpu: no number of processors, such as 2 or 500m (found 'two')"),
    ({"cpu": "0"}, "p: cluster.sft.cpu: no number of processors"),
    ({"shared_memory": "0Gi"}, "p: cluster.sft.shared_memory: no amount of memory"),
    ({"gpu": {"type": "gpu", "count": 1}}, "p: cluster.sft.gpu.type: no extended resource, such as nvidia.com/gpu"),
    ({"gpu": {"type": "nvidia.com/gpu", "count": -1}}, "p: cluster.sft.gpu.count: Input should be greater than or equal to 0"),
    ({"tolerations": [{"key": "a", "operator": "Exist", "value": "", "effect": "NoSchedule"}]}, "p: cluster.sft.tolerations.0.operator"),
    ({"timeout_seconds": 0}, "p: cluster.sft.timeout_seconds"),
    ({"nodes": 0}, "p: cluster.sft.nodes"),
    ({"environment": {"a-b": "1"}}, "no name of a variable"),
    ({"environment": {"A": 1}}, "p: cluster.sft.environment.A: Input should be a valid string (found 1)"),
    ({"nodes": 2, "secrets": {"s": {"k": "V"}}}, "p: cluster.sft: ranks on several nodes take no secrets from here"),
    ({"memroy": "8Gi"}, "p: cluster.sft.memroy: unknown key"),
])
def test_each_kind_of_mistake_is_one_line(change, expected):
    section = copy.deepcopy(GOOD)
    section["sft"].update(change)
    with pytest.raises(UserError) as caught:
        parse_cluster(section, "p")
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_stages_are_those_that_there_are():
    with pytest.raises(UserError, match=r"p: cluster\.pretran: unknown stage - the stages are curate, "):
        parse_cluster({**GOOD, "pretran": {}}, "p")
    with pytest.raises(UserError, match=r"p: cluster\.serve: missing"):
        parse_cluster({name: entry for name, entry in GOOD.items() if name != "serve"}, "p")
    with pytest.raises(UserError, match="p: cluster: not a mapping of stages"):
        parse_cluster([], "p")


def test_only_stages_that_train_take_several_nodes():
    for name in STAGES:
        section = {**GOOD, name: GOOD[name] | {"nodes": 2}}
        if name in ("pretrain", "sft", "rl"):
            assert parse_cluster(section, "p")[name].nodes == 2
        else:
            with pytest.raises(UserError, match=rf"p: cluster\.{name}\.nodes: {name} runs on one node \(found 2\)"):
                parse_cluster(section, "p")


@given(st.from_regex(r"[0-9]{1,4}(\.[0-9]{1,3})?(m|[KMGTPE]i?)?", fullmatch=True))
def test_what_is_taken_for_a_quantity_kubernetes_and_kfp_take_too(text):
    from kfp.dsl.pipeline_task import PipelineTask

    for key, check in (("memory", PipelineTask._validate_memory_request_limit), ("cpu", PipelineTask._validate_cpu_request_limit)):
        try:
            parse_cluster({**GOOD, "sft": GOOD["sft"] | {key: text}}, "p")
        except UserError:
            continue
        assert parse_quantity(text) > 0
        check(None, text)
