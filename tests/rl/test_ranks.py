"""The stage with a trainer of two ranks, whose layout changes from one part to the next: what one rank draws, and killed the same bits."""


import math

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.test_layouts import size
from tests.rl.conftest import copy
from tests.rl.test_staleness import curve, rollouts
from tests.stages.commands import kill_when, run, start

TWO = {"processes": 2, "layout": size(context=2), "staleness": 1,
       "stages": {"verified": {}, "held": {"layout": {"context": 1, "pipeline": 2}, "kl": 0.01, "steps": 3}}}


@pytest.mark.slow
def test_two_ranks_draw_what_one_draws_and_a_kill_changes_no_bit(tuned, unbroken, tmp_path):
    straight = copy(tuned, tmp_path / "straight", **TWO)
    metrics = run("rl", straight)
    one, two = curve(unbroken(1)), curve(straight)
    assert len(two) == 7 and [row["staleness"] for row in two] == [0, 1, 1, 1, 0, 1, 1]
    assert max(row["taught"] for row in two) > 0 and two[5]["kl"] > 0
    assert metrics["accepted_length_healed"] >= 1
    # Sums of two ranks round differently, which the updates carry on; the first step has seen none.
    first = [[row for row in rollouts(where) if row["step"] == 0] for where in (unbroken(1), straight)]
    assert first[0] == first[1] and len(first[0]) > 0
    for key in ("loss", "grad_norm", "entropy", "mismatch"):
        assert two[0][key] == pytest.approx(one[0][key], rel=1e-3, abs=1e-5), key
    broken = copy(tuned, tmp_path / "broken", **TWO)
    for place in ("verified/rollouts/00000002.jsonl", "held/rollouts/00000001.jsonl"):
        kill_when("rl", broken, f"rl/*/stages/{place}")
    assert list((broken / ".work/rl").glob("*/stages/verified/policy/model.safetensors"))
    run("rl", broken)
    for name in ("model.safetensors", "rollouts.jsonl"):
        assert (broken / "artifacts/aligned" / name).read_bytes() == (straight / "artifacts/aligned" / name).read_bytes(), name


@pytest.mark.slow
def test_ranks_that_a_layout_does_not_divide_are_one_line_before_any_work(tuned, tmp_path):
    where = copy(tuned, tmp_path / "odd", processes=3, layout=size(tensor=2))
    process = start("rl", where)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "error: rl.stages.rlvr.layout: 3 ranks cannot be divided into tensor 2" in output
    assert "Traceback" not in output and not list((where / ".work").glob("rl/*/ranks"))


@pytest.mark.slow
def test_in_bfloat16_trainer_and_generators_agree_as_far_as_its_bits_go(tuned, tmp_path):
    where = copy(tuned, tmp_path / "bfloat16", dtype="bfloat16", processes=2, kl=0.01)
    metrics = run("rl", where)
    rows = curve(where)
    assert max(row["taught"] for row in rows) > 0 and all(math.isfinite(row["grad_norm"]) for row in rows)
    assert 1e-4 < rows[0]["mismatch"] < 0.05 and rows[0]["kl"] < 1e-4 < metrics["mismatch_max"]
    weights = load_file(where / "artifacts/aligned/model.safetensors")
    before = load_file(tuned / "artifacts/sft/model.safetensors")
    learned = {name for name, tensor in weights.items()
               if tensor.dtype == torch.bfloat16 and not torch.equal(tensor, before[name].bfloat16())}
    assert len(learned) > len(weights) / 2
