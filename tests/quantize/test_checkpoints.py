"""The exported checkpoints: readable from the formats' definitions alone, complete, close to their source."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, NemotronHForCausalLM

from components.quantize.divergence import kl_divergence, log_probabilities
from components.quantize.operators import find_operators, module_of, read_header
from tests.checkpoints import tiny_checkpoint
from tests.quantize.conftest import made
from tests.quantize.reference import dequantised, reference_model, stored_tensors

FORMATS = ("fp8", "nvfp4")


@pytest.fixture(scope="module")
def source_weights(quantised):
    return load_file(quantised.source / "model.safetensors")


@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_is_there_and_what_is_not_quantised_is_untouched(quantised, source_weights, name):
    weights, _ = dequantised(quantised.path(name))
    stored = stored_tensors(quantised.path(name))
    assert weights.keys() == source_weights.keys()
    for key, value in source_weights.items():
        if stored[key].dtype == value.dtype:
            assert torch.equal(stored[key], value), key
    untouched(stored, source_weights)


def test_what_a_bfloat16_checkpoint_stores_in_float32_stays_so(quantised, tmp_path):
    """As ours do Mamba's `A_log` and `D` and the router's bias; in either format."""
    source = tiny_checkpoint(tmp_path / "source", dtype=torch.bfloat16)
    path, generator = source / "model.safetensors", torch.Generator().manual_seed(0)
    weights = {key: torch.rand(value.shape, generator=generator) if key.endswith((".A_log", ".D", "e_score_correction_bias")) else value
               for key, value in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    choice = {operator.name: "nvfp4" if operator.family == "experts" else "fp8" for operator in find_operators(read_header(source))}
    untouched(stored_tensors(made(quantised.root / "corpus", source, tmp_path / "exported", choice)), weights)


def untouched(stored, source):
    """Every tensor without a scale is as it was, its dtype too."""
    for key, value in source.items():
        if f"{key}_scale" not in stored:
            assert stored[key].dtype == value.dtype and torch.equal(stored[key], value), key


def test_each_operator_has_the_format_of_the_recipe_or_the_search(quantised):
    dtypes = {"nvfp4": torch.uint8, "fp8": torch.float8_e4m3fn, "bf16": torch.float32}
    _, choice = quantised.search
    for key, tensor in stored_tensors(quantised.path("nvfp4")).items():
        if key.endswith(".weight"):
            assert tensor.dtype == dtypes[choice.get(module_of(key), "bf16")], key
    for key, tensor in stored_tensors(quantised.path("fp8")).items():
        if key.endswith(".weight"):
            is_fp8 = any(part in key for part in (".mixer.experts.", ".shared_experts.", ".in_proj.", ".out_proj."))
            assert tensor.dtype == (torch.float8_e4m3fn if is_fp8 and not key.startswith("mtp.") else torch.float32), key


EXCLUDED = """lm_head backbone.embeddings mtp*
backbone.layers.0.mixer.conv1d backbone.layers.3.mixer.conv1d backbone.layers.2.mixer.gate backbone.layers.5.mixer.gate""".split()
EXCLUDED_FROM_FP8 = """backbone.layers.1.mixer.q_proj backbone.layers.1.mixer.k_proj backbone.layers.1.mixer.v_proj
backbone.layers.1.mixer.o_proj backbone.layers.4.mixer.q_proj backbone.layers.4.mixer.k_proj backbone.layers.4.mixer.v_proj
backbone.layers.4.mixer.o_proj
backbone.layers.2.mixer.fc1_latent_proj backbone.layers.2.mixer.fc2_latent_proj
backbone.layers.5.mixer.fc1_latent_proj backbone.layers.5.mixer.fc2_latent_proj""".split()


@pytest.mark.parametrize("name", FORMATS)
def test_exactly_this_is_excluded(quantised, name):
    """By the report's table: embedding, head, convolution, router, MTP; from FP8 also attention and latent projections."""
    _, choice = quantised.search
    expected = EXCLUDED_FROM_FP8 if name == "fp8" else [operator for operator, fmt in choice.items() if fmt == "bf16"]
    directory = quantised.path(name)
    listed = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]["exclude_modules"]
    assert listed == sorted([*EXCLUDED, *expected]) == json.loads((directory / "config.json").read_text())["quantization_config"]["ignore"]
    assert all(tensor.dtype == torch.float32 for key, tensor in stored_tensors(directory).items() if ".gate." in key)


@pytest.mark.parametrize(("name", "largest"), [("fp8", 0.03), ("nvfp4", 0.11)])
def test_weights_come_back_close(quantised, source_weights, name, largest):
    weights, _ = dequantised(quantised.path(name))
    for key, tensor in stored_tensors(quantised.path(name)).items():
        if tensor.dtype in (torch.uint8, torch.float8_e4m3fn) and key.endswith(".weight"):
            error = (weights[key] - source_weights[key]).norm() / source_weights[key].norm()
            assert 0 < error < (largest if tensor.dtype == torch.uint8 else 0.03), (key, error)


def test_kv_cache_scales_are_calibrated(quantised):
    for name in FORMATS:
        _, scales = dequantised(quantised.path(name))
        caches = {key: float(value) for key, value in scales.items() if key.endswith((".k_scale", ".v_scale"))}
        assert len(caches) == 2 * quantised.config["hybrid_override_pattern"].count("*")
        assert all(0 < value < 1 for value in caches.values())


@pytest.mark.parametrize("name", FORMATS)
def test_configuration_is_what_transformers_and_vllm_read(quantised, name):
    directory = quantised.path(name)
    config = json.loads((directory / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == quantised.config
    assert AutoConfig.from_pretrained(directory).model_type == "nemotron_h"
    assert quantization["quant_method"] == "modelopt"
    assert quantization["quant_algo"] == {"fp8": "FP8", "nvfp4": "MIXED_PRECISION"}[name]
    assert quantization["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert "mtp*" in quantization["ignore"]
    own = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]
    assert own["kv_cache_quant_algo"] == "FP8"
    assert AutoTokenizer.from_pretrained(directory).chat_template
    for copied in ("tokenizer.json", "generation_config.json"):
        assert (directory / copied).read_bytes() == (quantised.source / copied).read_bytes()
    assert not (directory / "rollouts.jsonl").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_module_names_are_those_of_the_tensors(quantised, name):
    directory = quantised.path(name)
    stored = stored_tensors(directory)
    quantization = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]
    named = [*quantization.get("quantized_layers", {}), *quantization.get("exclude_modules", [])]
    assert named
    for module in named:
        assert "\x00" not in module
        assert any(key.startswith(module.rstrip("*")) for key in stored), module


@pytest.mark.parametrize(("name", "most"), [("fp8", 8.02), ("nvfp4", 4.75)])
def test_bits_and_bytes(quantised, name, most):
    metrics = quantised.metrics
    assert metrics[f"{name}_bytes"] == (quantised.path(name) / "model.safetensors").stat().st_size < metrics["source_bytes"]
    bits = numel = 0
    stored = stored_tensors(quantised.path(name))
    weights, _ = dequantised(quantised.path(name))
    for key, tensor in stored.items():
        module = key.rpartition(".")[0]
        if f"{module}.weight_scale" in stored and not key.endswith((".k_scale", ".v_scale")):
            bits += 8 * tensor.numel() * tensor.element_size()
            numel += weights[key].numel() if key.endswith(".weight") else 0
    assert metrics[f"{name}_bits"] == pytest.approx(bits / numel)
    assert bits / numel < most


@pytest.mark.parametrize("name", FORMATS)
def test_exported_model_predicts_what_the_quantised_one_did(quantised, name):
    """The divergence that the stage measured on the files is the one of this package's reference, in float64."""
    source = NemotronHForCausalLM.from_pretrained(quantised.source, dtype=torch.float32).eval()
    reference = log_probabilities(source, quantised.heldout, 8)
    exported = log_probabilities(reference_model(quantised.path(name), activations=True), quantised.heldout, 8)
    assert exported.isfinite().all()
    assert kl_divergence(reference, exported) == pytest.approx(quantised.metrics[f"{name}_kl"], rel=0.05)


def test_weights_alone_of_fp8_diverge_less_than_of_nvfp4(quantised):
    source = NemotronHForCausalLM.from_pretrained(quantised.source, dtype=torch.float32).eval()
    reference = log_probabilities(source, quantised.heldout, 8)
    models = {name: reference_model(quantised.path(name)) for name in FORMATS}
    kl = {name: kl_divergence(reference, log_probabilities(model, quantised.heldout, 8)) for name, model in models.items()}
    assert 0 < kl["fp8"] < kl["nvfp4"] < 2.0  # nats; random weights: rounding flips many a routing decision
