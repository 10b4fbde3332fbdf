"""Deterministic runs, and one clear line for every mistake in what the stage is given."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest

from components.quantize import stage
from components.quantize.formats import recipe
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import parse
from tests.quantize.conftest import PARAMS, run

PLAIN = {"calibration": {"samples": 4, "heldout_samples": 2, "length": 32, "batch": 2, "conversations": 0.5, "seed": 0},
         "nvfp4_scales": "max", "distil": asdict(PARAMS.distil)}


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


def test_metrics_and_scales_by_largest_magnitude(quantised, inputs):
    metrics = run(inputs, parse(stage.Params, PLAIN, "test"))
    assert metrics.keys() == quantised.metrics.keys()
    assert metrics["nvfp4_bytes"] == quantised.metrics["nvfp4_bytes"]
    assert 0 < metrics["fp8_kl"] < 3


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


def test_unknown_format():
    with pytest.raises(UserError, match="unknown format 'int3' - choose fp8 or nvfp4"):
        recipe("int3")
    with pytest.raises(UserError, match="unknown way to choose scales"):
        recipe("nvfp4", "guess")


@pytest.mark.parametrize(("key", "value", "complaint"), [
    ("nvfp4_scales", "guess", "least_squares"), ("calibration", {**PLAIN["calibration"], "samples": 0}, "greater than 0"),
    ("calibration", {**PLAIN["calibration"], "length": 1}, "greater than 1"), ("bits", 4, "unknown key")])
def test_impossible_parameters(key, value, complaint):
    with pytest.raises(UserError, match=complaint):
        parse(stage.Params, {**PLAIN, key: value}, "params.yaml: quantize")


def test_windows_are_disjoint_and_seeded(quantised):
    from dataclasses import replace

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
