"""The training stages at their smallest, as the commands that DVC runs: killed with SIGKILL and run again, they leave the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.stages.commands import CHANGES, ROOT, begun_at, curve, end, kill_when, project, run, start


def kill_after_a_checkpoint(stage: str, where: Path) -> None:
    kill_when(stage, where, f"{stage}/*/**/checkpoints/step-*")
    assert not (where / "metrics" / f"{stage}.json").exists()


@pytest.mark.slow
def test_each_stage_leaves_an_artifact_with_its_figures(finished):
    where, metrics = finished
    assert metrics["pretrain"]["loss_last"] < metrics["pretrain"]["loss_first"]
    assert metrics["sft"]["loss_last"] < metrics["sft"]["loss_first"]
    assert metrics["sft"]["packing_efficiency"] > 0.85
    assert metrics["rl"]["staleness"] == 0.75 and metrics["rl"]["mismatch_mean"] < 0.05  # the first of the four steps is on-policy
    assert metrics["rl"]["completions"] == 64 == len((where / "artifacts/aligned/rollouts.jsonl").read_text().splitlines())
    for name in ("base", "sft", "aligned"):
        manifest = json.loads((where / "artifacts" / name / "manifest.json").read_text())
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= manifest["files"].keys()
        recorded = json.loads((where / "artifacts" / name / "manifest.json").read_text())["environment"]
        assert "float32" in recorded["precision_actual"] and recorded["device"] and recorded["processes"] >= 1, name
        assert name == "base" or (recorded["precision_requested"], recorded["precision_actual"]) == ("float32", "float32"), name
    recorded = json.loads((where / "artifacts/base/manifest.json").read_text())["environment"]
    assert recorded["precision_requested"] == "nvfp4"
    assert {"layer_class": "Mamba input", "layers": 2, "requested": "nvfp4", "actual": "nvfp4 emulated, products in float32",
            "emulated": True} in recorded["precision_ladder"]
    matchers = list(YAML().load(recorded["precision_recipe"])["matchers"])  # their order decides
    assert matchers[0] == "router" and matchers[-1] == "rest" and "last layers: 5" in matchers


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_killed_and_run_again_gives_the_same_bits(finished, tmp_path, stage):
    """Pre-training's kills are in test_restarts.py."""
    straight, _ = finished
    made = {"sft": "sft", "rl": "aligned"}[stage]
    where = project(tmp_path / "project")
    shutil.copytree(straight / "artifacts", where / "artifacts", ignore=shutil.ignore_patterns(made))
    kill_after_a_checkpoint(stage, where)
    run(stage, where)
    first, second = begun_at(where, {"sft": "sft", "rl": "rlvr"}[stage])
    assert first == 0 and second >= CHANGES[stage]["checkpoint_every"]
    for name in ("model.safetensors", *(["rollouts.jsonl"] if stage == "rl" else [])):
        assert (where / "artifacts" / made / name).read_bytes() == (straight / "artifacts" / made / name).read_bytes(), name
    assert curve(stage, where) == curve(stage, straight)


@pytest.mark.slow
def test_a_killed_run_goes_on_under_another_layout(finished, tmp_path):
    """Two data-parallel ranks die, a pipeline of two goes on from their checkpoint."""
    straight, _ = finished
    where = project(tmp_path / "project")
    shutil.copytree(straight / "artifacts" / "corpus", where / "artifacts" / "corpus")
    kill_after_a_checkpoint("pretrain", where)
    profile = where / "params.yaml"
    assert "layout: {tensor: 1, pipeline: 1, context: 1, expert: 1}" in profile.read_text()
    profile.write_text(profile.read_text().replace("layout: {tensor: 1, pipeline: 1", "layout: {tensor: 1, pipeline: 2", 1))
    run("pretrain", where)
    first, second = begun_at(where, "pretrain")
    assert first == 0 and second >= 2
    found, expected = curve("pretrain", where), curve("pretrain", straight)
    assert len(found) == len(expected) == 8
    # Of the steps before, every digit; after them not, for sums are in another order and stochastic rounding draws by rank.
    assert found[:second] == expected[:second] and found[second:] != expected[second:]
    assert float(found[second]["loss"]) == pytest.approx(float(expected[second]["loss"]), rel=1e-5)
    assert [float(row["loss"]) for row in found] == pytest.approx([float(row["loss"]) for row in expected], rel=1e-3)


@pytest.mark.slow
def test_a_vocabulary_that_is_not_the_tokenizers_is_one_line(finished, tmp_path):
    straight, _ = finished
    where = project(tmp_path / "project")
    shutil.copytree(straight / "artifacts" / "corpus", where / "artifacts" / "corpus")
    (where / "params.yaml").write_text((where / "params.yaml").read_text().replace("    vocab_size: 640", "    vocab_size: 2048"))
    process = start("pretrain", where)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "Traceback" not in output
    assert "pretrain.architecture.vocab_size" in output and "640" in output


@pytest.mark.slow
def test_torchrun_starts_the_same_training(finished, tmp_path):
    """Its ranks find each other and rank 0's work, as the two ranks do that the stage starts itself: the same bits."""
    straight, metrics = finished
    where = project(tmp_path / "project")
    shutil.copytree(straight / "artifacts" / "corpus", where / "artifacts" / "corpus")
    again = end(start("pretrain", where, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"), "pretrain", where)
    for key in ("loss_first", "loss_last", "heldout_loss"):
        assert again[key] == metrics["pretrain"][key], key
    assert (where / "artifacts/base/model.safetensors").read_bytes() == (straight / "artifacts/base/model.safetensors").read_bytes()


def test_torchrun_on_a_stage_of_one_process_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, "-m", "components.quantize"], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "RANK": "1"})
    assert done.returncode == 2 and "runs as one process" in done.stderr and "Traceback" not in done.stderr
