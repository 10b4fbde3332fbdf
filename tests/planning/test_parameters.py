"""Counts from shapes against the published model and against models that transformers really builds."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import NemotronHConfig, NemotronHForCausalLM

from stagecraft.contract.params import parse, read_profile
from stagecraft.model.config import Architecture
from stagecraft.planning.parameters import count_parameters
from tests.checkpoints import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SUPER_120B = parse(Architecture, read_profile(ROOT / "params" / "super-120b.yaml")["pretrain"]["architecture"], "architecture")


def test_the_published_model_counts_as_published():
    counts = count_parameters(SUPER_120B)
    assert round(counts.total / 1e9, 2) == 120.67
    assert round(counts.active / 1e9, 2) == 12.77
    assert round(counts.mtp / 1e9, 2) == 2.94


def test_an_unknown_letter_is_named():
    with pytest.raises(ValueError, match="'X'"):
        count_parameters(SimpleNamespace(**{**asdict(SUPER_120B), "hybrid_override_pattern": "MEX"}))


@st.composite
def architectures(draw):
    size = st.integers(1, 9)
    groups = draw(st.integers(1, 3))
    experts = draw(st.integers(1, 9))
    kv_heads = draw(st.integers(1, 3))
    hidden = 8 * draw(size)
    return {
        "hybrid_override_pattern": draw(st.text("M*E", min_size=1, max_size=7)), "hidden_size": hidden, "vocab_size": 16 * draw(size),
        "num_attention_heads": kv_heads * draw(st.integers(1, 3)),
        "num_key_value_heads": kv_heads, "head_dim": 4 * draw(size), "mamba_num_heads": groups * draw(st.integers(1, 3)),
        "mamba_head_dim": 4 * draw(size), "ssm_state_size": 4 * draw(size), "n_groups": groups,
        "conv_kernel": draw(st.integers(2, 4)), "chunk_size": 8 * draw(size),
        "n_routed_experts": experts, "num_experts_per_tok": draw(st.integers(1, experts)), "moe_intermediate_size": draw(size),
        "moe_latent_size": draw(st.none() | size), "moe_shared_expert_intermediate_size": draw(size),
        "mtp_hybrid_override_pattern": "*E", "num_nextn_predict_layers": 0}


@settings(max_examples=25, deadline=None)
@given(architectures())
def test_counts_are_those_of_the_real_model(fields):
    with torch.device("meta"):
        model = NemotronHForCausalLM(NemotronHConfig(**fields))
    counts = count_parameters(SimpleNamespace(**fields))
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    assert counts.routed == experts
    assert (counts.total - counts.active) * fields["n_routed_experts"] == experts * (
        fields["n_routed_experts"] - fields["num_experts_per_tok"])


def test_counts_are_those_of_a_checkpoint_on_disk(tmp_path):
    directory = tiny_checkpoint(tmp_path / "tiny")
    counts = count_parameters(SimpleNamespace(**json.loads((directory / "config.json").read_text())))
    with safe_open(directory / "model.safetensors", "pt") as tensors:
        sizes = {name: torch.Size(tensors.get_slice(name).get_shape()).numel() for name in tensors.keys()}  # noqa: SIM118
    trained = {name: size for name, size in sizes.items() if not name.endswith("e_score_correction_bias")}
    mtp = sum(size for name, size in trained.items() if name.startswith("mtp."))
    assert (counts.total, counts.mtp) == (sum(trained.values()) - mtp, mtp)
