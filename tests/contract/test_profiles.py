"""Every profile in the repository is complete: its sections parse, and no stage foresees a mistake. Some mistakes are foreseen."""

import importlib
import json
import re
from pathlib import Path
from statistics import fmean

import pytest
from ruamel.yaml import YAML

from components.quantize.mixture import JUDGED
from stagecraft.cli.run import stages_of
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load
from stagecraft.contract.preflight import check
from stagecraft.contract.stages import STAGES
from stagecraft.data.chat import encode_demonstration
from stagecraft.data.tasks import draw_splits
from stagecraft.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
PROFILES = pytest.mark.parametrize("profile", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))], ids=lambda path: path.name)


@PROFILES
@pytest.mark.parametrize("stage", STAGES)
def test_a_profile_parses(profile, stage):
    load(importlib.import_module(f"components.{stage}.stage").Params, stage, profile)


@PROFILES
def test_no_stage_foresees_a_mistake(profile):
    check(profile.read_text(), profile.name, list(STAGES))


@PROFILES
def test_a_profile_has_the_tokens_that_it_distils_on(profile, tmp_path):
    """By its task rows alone and a tokenizer that knows nothing else, which takes about the fewest tokens for them."""
    curate, rl, quantize = (load(importlib.import_module(f"components.{stage}.stage").Params, stage, profile)
                            for stage in ("curate", "rl", "quantize"))
    distil, calibration = quantize.distil, quantize.calibration
    if not distil.steps:
        pytest.skip("it distils nothing")
    rows = draw_splits({"sft": 2000, "rl": 6, "heldout": 6}, curate.tasks.flawed, 0, curate.tasks.sft_weights)["sft"]
    texts = [text for row in rows for text in (row["demonstration"], *(message["content"] for message in row["messages"]))]
    save_tokenizer(train_tokenizer(texts, 512), tmp_path, 1024)
    tokenizer = load_tokenizer(tmp_path)
    size = fmean(len(encode_demonstration(tokenizer, row)[0]) for row in rows)
    episodes = sum(rl.environments.values()) * rl.environment_prompts
    spoken = size * curate.tasks.sft_rows
    answered = size * rl.rollouts_kept * curate.tasks.rl_rows / (curate.tasks.rl_rows + episodes)
    calibrated, learned = (calibration.samples + calibration.heldout_samples) * calibration.conversations, distil.steps * distil.batch
    assert spoken > (calibrated + (learned + distil.heldout) * (1 - distil.rollouts_share)) * calibration.length
    assert answered * (1 - JUDGED) > learned * distil.rollouts_share * calibration.length
    assert answered * JUDGED > distil.heldout * distil.rollouts_share * calibration.length


@pytest.mark.parametrize(("change", "expected"), [
    ({"mtp_depths": 0}, "params.yaml: pretrain: mtp_depths 0 does not go with architecture.num_nextn_predict_layers 1"),
    ({"seed": 2**32}, "params.yaml: pretrain.seed: Input should be less than 2147483648"),
    ({"architecture": {"num_nextn_predict_layers": 2}}, "params.yaml: pretrain.architecture: num_nextn_predict_layers 2 must be 0 or 1"),
    ({"architecture": {"n_routed_experts": 1, "num_experts_per_tok": 1}},
     "params.yaml: pretrain.architecture: n_routed_experts must be at least 2"),
])
def test_what_a_run_would_meet_after_others_is_refused_before_it(change, expected):
    profile = YAML(typ="safe").load(ROOT / "params.yaml")
    for key, value in change.items():
        profile["pretrain"][key] = profile["pretrain"][key] | value if key == "architecture" else value
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        check(json.dumps(profile), "params.yaml", list(STAGES))


@pytest.mark.parametrize(("section", "change", "expected", "here_alone"), [
    ("curate", {"vocab_size": 4096}, "pretrain.architecture.vocab_size: vocab_size is 2048, but the corpus's tokenizer has 4096", False),
    ("pretrain", {"processes": 3, "layout": {"tensor": 1, "pipeline": 2, "context": 1, "expert": 1}},
     "pretrain.layout: 3 ranks cannot be divided into tensor 1 x pipeline 2", False),
    ("pretrain", {"emulate": False}, "precision: nvfp4 (Mamba input) would be emulated on CPU", True),
    ("pretrain", {"mtp_depths": 0, "architecture": {"num_nextn_predict_layers": 0}},
     "sft.mtp_depths: the model has no MTP block to train - set it to 0", False),
    ("sft", {"data": {"tasks": True, "files": ["mine.jsonl"], "bad_rows": "fail"}}, "sft.data.files: mine.jsonl: no such file", True),
    ("rl", {"mixture": {"sorted": 1.0}}, "rl.stages.rlvr: mixture: no prompts of family 'sorted' - name some of ", False),
    ("rl", {"environments": {"sgl": 1.0}}, "environments: unknown environment 'sgl' - use one of ", False),
    ("rl", {"environments": {"mine": 1.0}, "environment_servers": {"mine": {"url": "http://a:1", "rows": "mine.jsonl", "turns": 1}}},
     "rl.environment_servers.mine.rows: mine.jsonl: no such file", True),
    ("rl", {"layout": {"tensor": 4, "pipeline": 1, "context": 1, "expert": 1}}, "rl.stages.rlvr.layout: ", False),
    ("evaluate", {"tasks": {"prompts": 11}}, "evaluate.tasks.prompts: 11 are less than two of each of 6 task families", False),
    ("evaluate", {"tasks": {"prompts": 53}}, "evaluate.gate.family_max_loss: 8 prompts of a family cannot show that no more than 0.25 is "
     "lost to the champion: equal answers leave 0.273 possible - raise it to 0.28 or more, or raise evaluate.tasks.prompts", False),
    ("evaluate", {"benchmarks": {"prompts": 8}}, "evaluate.gate.family_max_loss: 8 prompts of a benchmark cannot show", False),
    ("evaluate", {"benchmarks": {"data": "nowhere"}}, "evaluate.benchmarks.data: nowhere: no such folder", True),
    ("evaluate", {"max_model_len": 4096}, "evaluate.max_model_len: sequences of 4096 tokens, and the server takes 2048 of", False),
    ("rl", {"max_prompt_tokens": 2048, "pack_tokens": 4096}, "rl.stages.rlvr: max_prompt_tokens + max_new_tokens: sequences of", False),
    ("serve", {"deployment": {"max_model_len": 4096}}, "serve.deployment.max_model_len: sequences of 4096 tokens", False),
])
def test_what_a_later_stage_would_refuse_is_foreseen(section, change, expected, here_alone):
    profile = YAML(typ="safe").load(ROOT / "params.yaml")
    for key, value in change.items():
        group = key in ("benchmarks", "architecture", "tasks", "deployment")
        profile[section][key] = profile[section][key] | value if group else value
    text = json.dumps(profile)
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        check(text, "params.yaml", list(STAGES), local=True)
    if here_alone:  # on a cluster the pods may have the file
        check(text, "params.yaml", list(STAGES))
    else:
        with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
            check(text, "params.yaml", list(STAGES))
    check(text, "params.yaml", [stage for stage in STAGES if stage != section], local=True)  # which then starts from elsewhere


def test_a_pipelines_stages_are_those_it_takes_the_parameters_of():
    assert stages_of(ROOT / "pipelines" / "full.py", None) == list(STAGES)
    assert stages_of(ROOT / "pipelines" / "full.py", "sft") == list(STAGES)[2:]
    assert stages_of(ROOT / "pipelines" / "post_training.py", None) == list(STAGES)[2:]
