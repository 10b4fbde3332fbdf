"""Deterministic runs, and one clear line for every mistake in what the stage is given."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch

from components.quantize import stage
from components.quantize.formats import recipe
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import parse
from tests.quantize.conftest import PARAMS, SEARCH, run
from tests.quantize.reference import stored_tensors

PLAIN = {"calibration": {"samples": 4, "heldout_samples": 2, "length": 32, "batch": 2, "conversations": 0.5, "seed": 0},
         "nvfp4_scales": "max",
         "search": {"enabled": False, "effective_bits": 4.75, "formats": ["nvfp4", "fp8"], "excluded": "ignore", "cost": "bits",
                    "gpu": "h100", "tokens": 1, "frontier": 0},
         "distil": asdict(PARAMS.distil)}


@pytest.fixture
def inputs(quantised, tmp_path):
    for name in ("corpus", "aligned"):
        shutil.copytree(quantised.root / name, tmp_path / name)
    return tmp_path


def test_same_inputs_same_files(quantised, inputs):
    metrics = run(inputs)
    assert metrics == quantised.metrics
    for name in stage.FORMATS:
        for path in quantised.path(name).iterdir():
            assert path.read_bytes() == (inputs / name / path.name).read_bytes(), path.name


def test_a_kill_while_checkpoints_are_handed_over_loses_none_of_their_files(quantised, inputs, monkeypatch):
    """The runner empties the outputs, and the stage takes what it exported before from its work directory."""
    linked = stage.link_or_copy

    def killed(source, target):
        if target.endswith("config.json"):
            raise KeyboardInterrupt
        linked(source, target)

    monkeypatch.setattr(stage, "link_or_copy", killed)
    with pytest.raises(KeyboardInterrupt):
        run(inputs)
    monkeypatch.setattr(stage, "link_or_copy", linked)
    for name in stage.FORMATS:
        shutil.rmtree(inputs / name)
    run(inputs)
    for name in stage.FORMATS:
        assert {path.name for path in (inputs / name).iterdir()} == {path.name for path in quantised.path(name).iterdir()}


def test_metrics_and_scales_by_largest_magnitude(quantised, inputs):
    metrics = run(inputs, parse(stage.Params, PLAIN, "test"))
    assert metrics.keys() == {key for key in quantised.metrics if not key.startswith("search_")} - {"nvfp4_effective_bits"}
    assert 0 < metrics["fp8_kl"] < 3
    precision = {key: tensor.dtype for key, tensor in stored_tensors(inputs / "nvfp4").items() if key.endswith(".weight")}
    for key, dtype in precision.items():
        is_expert, is_fp8 = ".mixer.experts." in key, any(part in key for part in (".shared_experts.", ".in_proj.", ".out_proj."))
        recipe_dtype = torch.uint8 if is_expert else torch.float8_e4m3fn if is_fp8 else torch.float32
        assert dtype == (torch.float32 if key.startswith("mtp.") else recipe_dtype), key


def change(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def test_another_architecture(inputs):
    change(inputs / "aligned" / "config.json", model_type="llama")
    with pytest.raises(UserError, match="architecture 'llama' - give a nemotron_h checkpoint"):
        run(inputs)


def test_quantised_already(inputs):
    change(inputs / "aligned" / "config.json", quantization_config={})
    with pytest.raises(UserError, match="quantised already"):
        run(inputs)


@pytest.mark.parametrize("damage", ["absent", "truncated", "other shapes", "no configuration", "broken configuration"])
def test_unreadable_checkpoint(inputs, damage):
    weights, config = inputs / "aligned" / "model.safetensors", inputs / "aligned" / "config.json"
    if damage == "absent":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "other shapes":
        change(config, hidden_size=64)
    elif damage == "no configuration":
        config.unlink()
    else:
        config.write_text("{")
    with pytest.raises(UserError, match="give a nemotron_h checkpoint"):
        run(inputs)


def test_missing_and_scarce_calibration_rows(inputs):
    rows = inputs / "corpus" / "tasks" / "sft.jsonl"
    rows.write_text("\n".join(rows.read_text().splitlines()[:3]))
    with pytest.raises(UserError, match=r"tokens where \d+ are wanted - lower quantize\.calibration"):
        run(inputs)
    rows.unlink()
    with pytest.raises(UserError, match=r"sft\.jsonl"):
        run(inputs)


def test_corpus_of_another_vocabulary(inputs):
    change(inputs / "aligned" / "config.json", vocab_size=300)
    with pytest.raises(UserError, match="where the model knows 300"):
        run(inputs)


def test_a_budget_below_every_choice(inputs):
    with pytest.raises(UserError, match=r"search\.effective_bits: a budget of 4\.4 where no choice is below 4\.50\d\d - raise it"):
        run(inputs, replace(PARAMS, search=replace(SEARCH, effective_bits=4.4)))


def test_a_budget_that_leaves_everything_as_it_is(inputs):
    with pytest.raises(UserError, match=r"search\.effective_bits: a budget of 32 is best met by quantising nothing, .* - lower it"):
        run(inputs, replace(PARAMS, search=replace(SEARCH, effective_bits=32.0)))


def test_experts_that_make_no_whole_blocks(inputs):
    """The recipe has them in NVFP4; a search leaves them out."""
    change(inputs / "aligned" / "config.json", moe_intermediate_size=72)
    with pytest.raises(UserError, match=r"config\.json: NVFP4 has blocks of 16, .* moe_intermediate_size 72 - set quantize\.search"):
        run(inputs, parse(stage.Params, PLAIN, "test"))


def test_unknown_format():
    with pytest.raises(UserError, match="unknown format 'int3' - choose fp8 or nvfp4"):
        recipe("int3")
    with pytest.raises(UserError, match="unknown way to choose scales"):
        recipe("nvfp4", "guess")


@pytest.mark.parametrize(("key", "value", "complaint"), [
    ("nvfp4_scales", "guess", "least_squares"), ("calibration", {**PLAIN["calibration"], "samples": 0}, "greater than 0"),
    ("calibration", {**PLAIN["calibration"], "length": 1}, "greater than 1"), ("bits", 4, "unknown key"),
    ("search", {**PLAIN["search"], "effective_bits": 0}, r"search\.effective_bits: Input should be greater than 0 \(found 0\)"),
    ("search", {**PLAIN["search"], "effective_bits": 33.0}, "less than or equal to 32"),
    ("search", {**PLAIN["search"], "formats": ["int3"]}, r"'nvfp4', 'fp8' or 'bf16' \(found 'int3'\)"),
    ("search", {**PLAIN["search"], "formats": ["bf16"]}, "hold nothing to quantise to"),
    ("search", {**PLAIN["search"], "enabled": True, "formats": ["nvfp4", "bf16"], "frontier": 9}, "a frontier needs both nvfp4 and fp8"),
    ("search", {**PLAIN["search"], "gpu": "abacus"}, "'gb200' or 'gb300'")])
def test_impossible_parameters(key, value, complaint):
    with pytest.raises(UserError, match=complaint):
        parse(stage.Params, {**PLAIN, key: value}, "params.yaml: quantize")


def test_windows_are_disjoint_and_seeded(quantised):
    from components.quantize.calibrate import calibration_windows

    def windows(seed):
        return calibration_windows(quantised.root / "corpus", replace(PARAMS.calibration, seed=seed), 2048)

    calibration, heldout = windows(0)
    assert calibration.shape == (16, 64)
    assert heldout.shape == (8, 64)
    seen = {tuple(row.tolist()) for row in calibration}
    assert not any(tuple(row.tolist()) in seen for row in heldout)
    assert (windows(0)[0] == calibration).all()
    assert not (windows(1)[0] == calibration).all()
