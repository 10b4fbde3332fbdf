"""The loop of a stage: what a kill cut off is forgotten, steps that taught nothing or had no finite loss show no figures of an update, and
too many of the latter end the run."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from components.rl import train as policy
from components.rl.generator import Job
from components.rl.lead import rewind_rollouts
from components.rl.rollouts import Draw, Sample
from components.rl.stage import mismatches
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.engine import parallel
from stagecraft.engine.collectives import FirstRank
from stagecraft.engine.trainer import Optimization, Trainer
from tests.architectures import tiny
from tests.rl.test_prompts import PARAMS

FLAT, TAUGHT, NAN, GRADED = "flat", "taught", "nan", "graded"  # what a step's group is like


def group(kind):
    logprob = math.nan if kind == NAN else -5.0
    return [Sample("a", "sort", "?", [1, 2], 0, tokens=[3 + place, 4], mask=[1, 1], logprobs=[logprob] * 2, finished=True,
                   reward=float(place and kind != FLAT), parts={"verified": 1.0} if kind == GRADED and not place else {})
            for place in range(2)]


@pytest.fixture(scope="module")
def weights():
    parallel.initialize(seed=0)
    yield Trainer(tiny(), Optimization(lr=1e-3, steps=1), max_sequence_length=64, expert_bias_rate=0.0, aux_loss=0.0).weights()
    parallel.shutdown()


def trained(directory, monkeypatch, weights, *kinds):
    """Curve and notes of a stage whose steps are of these kinds; what ended it, if something did."""
    source = SimpleNamespace(take=lambda step: Draw(group(kinds[step]), 1.0), hand_over=lambda *_: None, finish=lambda *_: None,
                             close=lambda: None)
    monkeypatch.setattr("components.rl.lead.source_of_completions", lambda *_: source)
    params = replace(PARAMS, steps=len(kinds), dtype="float32", generations_per_prompt=2, checkpoint_every=100, kl=0.0)
    told, work = [], directory / "rlvr"
    work.mkdir()
    log = RunLog("rl", directory, directory)
    monkeypatch.setattr(log, "note", told.append)
    parallel.initialize(seed=0)
    try:
        policy.train(params, tiny(), weights, Job(params, directory, directory, None, work, ()), work, 10, FirstRank(), log)
    except UserError as error:
        return log.curve(), told, str(error)
    return log.curve(), told, None


@pytest.mark.parametrize("cut", ['"correct": 1.0}', '"step": 3', "[3, 3]", "[3, 3]}"])
def test_a_rollout_that_a_kill_cut_off_is_forgotten_wherever_it_is_cut(tmp_path, cut):
    first, second = (json.dumps({"step": step, "parts": {"correct": 1.0}, "versions": [3, 3]}) for step in (3, 4))
    kept, end = tmp_path / "rollouts.jsonl", second.replace("4", "3")
    kept.write_text(f"{first}\n{second}\n{end[:end.index(cut) + len(cut)]}")
    assert rewind_rollouts(kept, 4) == 1 and kept.read_text() == f"{first}\n"
    assert rewind_rollouts(tmp_path / "absent", 4) == 0


def test_what_taught_nothing_or_was_skipped_has_no_figures_and_no_part_in_the_means(tmp_path, monkeypatch, weights):
    rows, told, error = trained(tmp_path, monkeypatch, weights, FLAT, TAUGHT, NAN, NAN, NAN, TAUGHT)
    assert error is None and [row["reward"] for row in rows] == [0, *[0.5] * 5] and rows[0]["loss"] == rows[0]["grad_norm"] == 0
    for key in ("mismatch", "entropy", "importance"):
        assert [key in row for row in rows] == [False, True, False, False, False, True], key
    assert ["loss" in row for row in rows] == [True, True, False, False, False, True]
    found = [rows[at]["mismatch"] for at in (1, 5)]
    assert mismatches(rows) == {"mismatch_mean": sum(found) / 2, "mismatch_max": max(found)} and min(found) > 0
    assert mismatches(rows[:1]) == {}
    skipped = [line for line in told if "skipped" in line]
    assert [line.split(":")[0] for line in skipped] == [f"step {step} is skipped" for step in (13, 14, 15)] and "loss nan" in skipped[0]


def test_a_figure_of_a_resource_server_is_not_taken_for_a_judges(tmp_path, monkeypatch, weights):
    rows, _, error = trained(tmp_path, monkeypatch, weights, GRADED)
    assert error is None and rows[0]["reward"] == 0.5 and "verified" not in rows[0]


def test_too_many_steps_without_a_finite_loss_end_the_run_and_one_that_teaches_nothing_between_them_does_not_help(
        tmp_path, monkeypatch, weights):
    rows, _, error = trained(tmp_path, monkeypatch, weights, TAUGHT, NAN, NAN, FLAT, NAN, NAN, TAUGHT)
    assert error.startswith("rlvr: loss nan and gradient norm ") and "at step 16, after 3 steps in a row that were skipped" in error
    assert [row["step"] for row in rows] == [11, 12, 13, 14, 15]


@pytest.mark.parametrize("kinds", [(NAN,), (FLAT, NAN, NAN)])
def test_a_stage_in_which_no_step_was_finite_is_no_success(tmp_path, monkeypatch, weights, kinds):
    _, _, error = trained(tmp_path, monkeypatch, weights, *kinds)
    assert error == "rlvr: none of the steps that taught something had a finite loss and gradient - lower the learning rate"
