"""`stagecraft plan`: mistakes in one line, and the JSON's figures."""

import json

import pytest
from ruamel.yaml import YAML

from stagecraft.cli import plan as command
from stagecraft.contract.errors import exit_on_user_error
from stagecraft.contract.params import parse
from stagecraft.engine.layout import Layout
from tests.planning.models import ROOT

MISTAKES = {
    ("super-120b", "--gpus", "64xX9"): "error: --gpus: unknown GPU 'X9' - known are H100, H200, B200, GB200, GB300",
    ("super-120b", "--gpus", "64"): "error: --gpus: '64' is not a number and a GPU - write it like 64xB200",
    ("super-120b", "--gpus", "0xB200"): "error: --gpus: '0xB200' is not a number and a GPU - write it like 64xB200",
    ("super-120b", "--layout", "tp=3"):
        "error: --layout: tp x cp x pp = 3 does not divide the 64 GPUs - leave --layout out to search for one",
    ("super-120b", "--layout", "tp=64"):
        "error: --layout: layout.tensor 64 does not divide num_attention_heads 32 - leave --layout out to search for one",
    ("super-120b", "--gpus", "512xB200", "--layout", "tp=8,cp=64,ep=64"):
        "error: --layout: layout.context 64 does not divide the 16 Mamba heads of a tensor-parallel rank, which are in 1 groups - leave "
        "--layout out to search for one",
    ("super-120b", "--layout", "ep=64,dp=32"):
        "error: --layout: tp x cp x pp x dp = 32 is not the 64 GPUs there are - leave --layout out to search for one",
    ("super-120b", "--layout", "experts=8"):
        "error: --layout: 'experts=8' is no part of a layout - write it like tp=2,ep=64,recompute=moe; names are tp, cp, "
        "pp, ep, dp, micro, recompute",
    ("super-120b", "--layout", "ep=64"):
        "error: --layout: TP1 CP1 PP1 EP64 DP64, micro-batch 1, recompute none: needs 202.3 GB per GPU of 169.2 GB usable on B200, too "
        "much by 33.1 GB - divide more (tp, pp, ep) or recompute=full",
    ("nobody",): "error: stagecraft plan: no profile 'nobody' - give a path, or one of laptop, ",
    ("super-120b", "--set", "luck=2"):
        "error: --set: 'luck=2' sets no efficiency - keys are gemm, attention, scan, sustained, memory, nvlink, network, overlap, "
        "memory_use, serving_memory_use, serving_step_seconds, restart_seconds, checkpoint_bandwidth; write gemm.nvfp4=0.7",
    ("super-120b", "--set", "sustained=-1"): "error: --set.sustained: Input should be greater than 0 (found -1.0)",
    ("super-120b", "--set", "sustained=5"): "error: --set.sustained: Input should be less than or equal to 1 (found 5.0)",
    ("super-120b", "--set", "gemm.nvfp4=0"): "error: --set.gemm.nvfp4: Input should be greater than 0 (found 0.0)",
    ("super-120b", "--set", "memory=0"): "error: --set.memory: Input should be greater than 0 (found 0.0)",
    ("super-120b", "--set", "memory_use=2"): "error: --set.memory_use: Input should be less than or equal to 1 (found 2.0)",
    ("super-120b", "--set", "checkpoint_bandwidth=0"): "error: --set.checkpoint_bandwidth: Input should be greater than 0 (found 0.0)",
    ("super-120b", "--set", "overlap.data=1.5"): "error: --set.overlap.data: Input should be less than or equal to 1 (found 1.5)",
    ("super-120b", "--set", "restart_seconds=-1"): "error: --set.restart_seconds: Input should be greater than or equal to 0 (found -1.0)",
    ("super-120b", "--stage", "serve", "--drafts", "3", "--accepted", "0.5"):
        "error: --accepted: 0.5 tokens of a step cannot be kept with 3 drafts - give 1 to 4",
    ("super-120b", "--stage", "serve", "--drafts", "3", "--accepted", "4.5"):
        "error: --accepted: 4.5 tokens of a step cannot be kept with 3 drafts - give 1 to 4",
    ("super-120b", "--price", "nan"): "error: stagecraft plan: 'nan' is no positive number - write it like 25e12 or 4.5",
    ("super-120b", "--gpus", "4096xB200", "--mtbf-hours", "24"):
        "error: --mtbf-hours: 4096 GPUs would fail every 21.1 s, and need 900 s to start again and save once - ",
    ("super-120b", "--mtbf-hours", "0.001"): "error: --mtbf-hours: 64 GPUs would fail every 0.0563 s, and need ",
    ("super-120b", "--stage", "serve", "--lengths", "1e400k/1k"): "error: --lengths: '1e400k/1k' are no lengths - ",
    ("super-120b", "--stage", "serve", "--lengths", "1e300k/1k"): "error: --lengths: '1e300k/1k' are no lengths - ",
    ("super-120b", "--drafts", "-1"): "error: stagecraft plan: '-1' is no whole number - write it like 3",
    ("super-120b", "--precision", "int3"):
        "error: --precision: no training precision 'int3' - known are nvfp4, nvfp4-everywhere, mxfp8, fp8, bf16, float32",
    ("super-120b", "--stage", "serve", "--lengths", "8k"): "error: --lengths: '8k' are no lengths - write them like 8k/64k,1000/200",
    ("super-120b", "--stage", "serve", "--gpus", "2xB200", "--tensor", "4"):
        "error: --tensor: engines of 4 GPUs cannot be made of 2xB200 with 32 heads - give a divisor of the heads that the GPUs suffice for",
    ("super-120b", "--stage", "serve", "--gpus", "1xH100"): "error: --gpus: weights of ",
}


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_line_and_exit_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        exit_on_user_error(lambda: command.main(arguments))
    printed = capsys.readouterr()
    assert end.value.code == 2 and not printed.out
    assert printed.err.count("\n") == 1 and printed.err.startswith(MISTAKES[arguments])


def without(key):
    return lambda section: section.pop(key)


@pytest.mark.parametrize(("stage", "change", "expected"), [
    ("pretrain", lambda section: section.clear(), "pretrain.architecture: missing - add it"),
    ("pretrain", without("optimizer"), "pretrain.optimizer: missing - add it"),
    ("pretrain", without("architecture"), "pretrain.architecture: missing - add it"),
    ("pretrain", lambda section: section.update(global_batch="eight"), "pretrain.global_batch: Input should be a valid integer"),
    ("pretrain", lambda section: section.update(steps=0), "pretrain.steps: Input should be greater than 0 (found 0)"),
    ("pretrain", lambda section: section.update(optimizer="moun"), "pretrain.optimizer: Input should be 'adamw' or 'muon' (found 'moun')"),
    ("pretrain", lambda section: section["architecture"].update(layers=3), "pretrain.architecture.layers: unknown key"),
    ("serve", lambda section: section.clear(), "serve: no section 'server' - add it"),
    ("serve", lambda section: section.update(server=3), "serve.server: "),
    ("serve", lambda section: section["server"].update(draft_tokenz=section["server"].pop("draft_tokens")),
     "serve.server.draft_tokenz: unknown key"),
])
def test_a_mistake_in_the_profile_is_one_line_too(tmp_path, capsys, stage, change, expected):
    profile = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    change(profile[stage])
    profile = {name: section or None for name, section in profile.items()}  # as `serve:` with nothing below it
    (path := tmp_path / "mine.yaml").write_text(json.dumps(profile))
    with pytest.raises(SystemExit) as end:
        exit_on_user_error(lambda: command.main([str(path), "--gpus", "H100", "--stage", stage]))
    printed = capsys.readouterr()
    assert end.value.code == 2 and not printed.out
    assert printed.err.count("\n") == 1 and printed.err.startswith(f"error: {path}: {expected}")


def test_the_optimizer_of_the_profile_counts(tmp_path, capsys):
    text = (ROOT / "params" / "super-120b.yaml").read_text()
    (profile := tmp_path / "mine.yaml").write_text(text.replace("optimizer: adamw", "optimizer: muon"))
    with pytest.raises(SystemExit):
        exit_on_user_error(lambda: command.main([str(profile), "--layout", "tp=2,ep=64"]))
    assert "--layout: muon needs whole matrices: set layout.tensor to 1" in capsys.readouterr().err


def test_eight_gpus_are_too_few_and_it_says_by_how_much(capsys):
    with pytest.raises(SystemExit):
        exit_on_user_error(lambda: command.main(["super-120b", "--gpus", "8xH100"]))
    assert "8xH100: no layout fits; the smallest, TP8 CP1 PP1 EP8 DP1" in (line := capsys.readouterr().err) and "too much by 2" in line


def test_the_layout_is_printed_as_a_profile_takes_it(capsys):
    command.main(["super-120b", "--gpus", "64xH100", "--precision", "bf16", "--layout", "tp=2,pp=2,ep=16,recompute=full"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("in the profile: "))
    said = YAML(typ="safe").load("{" + line.removeprefix("in the profile: ") + "}")
    assert parse(Layout, said["layout"], "layout") == Layout(tensor=2, pipeline=2, context=1, expert=16, recompute="full")
    assert said["micro_batch"] == 1


def printed(capsys, *arguments):
    command.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_the_published_layout(capsys):
    plan = printed(capsys, "params/super-120b.yaml", "--gpus", "64xGB300", "--layout", "ep=64", "--price", "2")
    assert plan["parameters"]["total"] == 120_668_687_360
    assert plan["step"]["tokens_per_gpu"] == pytest.approx(10308, rel=0.1)
    assert plan["run"]["steps"] == 993_404 and plan["run"]["cost"] == pytest.approx(2 * plan["run"]["gpu_hours"])
    seconds = plan["step"]["seconds"]
    assert plan["run"]["days"] == pytest.approx(993_404 * seconds / 86400)
    assert plan["checkpoint"]["steps_between"] == pytest.approx(plan["checkpoint"]["daly"] / seconds)


def test_an_efficiency_is_an_input(capsys):
    steps = [printed(capsys, "super-120b", "--gpus", "64xGB300", "--layout", "ep=64", "--set", f"sustained={share}")["step"]["seconds"]
             for share in (1, 0.5)]
    assert steps[1] == pytest.approx(2 * steps[0])


def test_bf16_gradients_need_less_and_send_less(capsys):
    plans = [printed(capsys, "super-120b", "--gpus", "64xGB300", "--layout", "ep=64", "--gradients", kind)
             for kind in ("float32", "bfloat16")]
    assert plans[0]["memory"]["gradients"] == 2 * plans[1]["memory"]["gradients"]
    assert plans[0]["communication"]["data"]["nvlink"] == pytest.approx(1.5 * plans[1]["communication"]["data"]["nvlink"])
    assert plans[0]["step"]["seconds"] > plans[1]["step"]["seconds"]


def test_the_laptops_profile_plans_too(capsys):
    assert printed(capsys, "laptop", "--gpus", "H100")["run"]["steps"] > 0
    assert printed(capsys, "laptop", "--gpus", "H100", "--stage", "serve")["serving"][0]["resident"] > 0


def test_serving_prints_with_and_without_drafts(capsys):
    command.main(["super-120b", "--stage", "serve", "--gpus", "8xB200", "--lengths", "8k/64k"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "8192/65536" in line]
    assert len(lines) == 2
