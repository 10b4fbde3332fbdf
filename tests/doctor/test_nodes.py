"""The data of every kind of node: complete, sourced, and what a wrong file says."""

import math
import re

import pytest
from ruamel.yaml import YAML

from stagecraft.contract.errors import UserError
from stagecraft.doctor import node as nodes
from stagecraft.doctor.node import UNITS, kind_of, load, names

GPUS = [name for name in names() if name != "laptop"]


@pytest.mark.parametrize("name", names())
def test_every_line_has_its_reason_and_source(name):
    node = load(name)
    lines = [*node.bounds.values(), *node.versions.values(), *node.environment, *node.choices]
    assert lines and all(line.reason and line.source for line in lines)
    variables = [line.name for line in node.environment]
    assert len(variables) == len(set(variables)) and all(re.fullmatch("[A-Z][A-Z0-9_]*", variable) for variable in variables)
    assert all(math.isfinite(bound.least if bound.least is not None else bound.most) for bound in node.bounds.values())


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_node_is_held_to_what_a_job_needs(name):
    node = load(name)
    assert set(node.versions) == {"driver", "cuda", "nccl"}
    needed = {"gpus", "nvlinks", "nvlink_rate", "ports", "port_rate", "gemm_bf16", "memory_rate", "all_reduce"}
    assert needed <= set(node.bounds) <= set(UNITS)
    assert kind_of(set(node.gpu_names)) == name


def test_the_published_environment_of_both_generations():
    """The lines of the recipe: NVL72 racks and Hopper nodes (arXiv 2604.12374's Megatron-Bridge recipes)."""
    def lines(name):
        return {line.name: line.value for line in load(name).environment}

    assert lines("gb300").items() >= {
        "NVLINK_DOMAIN_SIZE": "72", "USE_MNNVL": "1", "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN": "64", "CUDA_DEVICE_MAX_CONNECTIONS": "32",
        "NCCL_NVLS_ENABLE": "0", "NCCL_GRAPH_REGISTER": "0", "NVTE_FWD_LAYERNORM_SM_MARGIN": "20", "NVTE_BWD_LAYERNORM_SM_MARGIN": "20",
        "NVTE_USE_FAST_MATH": "1"}.items()
    for name in ("h100", "h200"):
        assert lines(name).items() >= {"NVLINK_DOMAIN_SIZE": "8", "USE_MNNVL": "0"}.items()
        assert "NVTE_USE_FAST_MATH" not in lines(name)  # of NVFP4, which Hopper has not


@pytest.mark.parametrize(("change", "said"), [
    (lambda data: data["bounds"].update(speed_of_light={"least": 1, "otherwise": "warn", "reason": "-", "source": "-"}), "speed_of_light"),
    (lambda data: data["bounds"]["cores"].update(most=3), "either `least` or `most`"),
    (lambda data: data["bounds"]["cores"].update(otherwise="panic"), "bounds.cores.otherwise"),
    (lambda data: data["bounds"]["cores"].pop("source"), "bounds.cores.source: missing"),
    (lambda data: data["versions"].update(driver={"least": "new", "reason": "-", "source": "-"}), "not a version"),
    (lambda data: data["versions"].update(gcc={"least": "12", "reason": "-", "source": "-"}), "gcc"),
    (lambda data: data.update(enviroment=[]), "enviroment: unknown key"),
])
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, change, said):
    data = YAML(typ="safe").load((nodes.DIRECTORY / "laptop.yaml").read_text())
    change(data)
    with (tmp_path / "mine.yaml").open("w") as stream:
        YAML(typ="safe").dump(data, stream)
    monkeypatch.setattr(nodes, "DIRECTORY", tmp_path)
    with pytest.raises(UserError, match=r"mine\.yaml") as error:
        load("mine")
    assert said in str(error.value)
