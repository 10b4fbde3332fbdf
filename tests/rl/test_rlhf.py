"""RLHF: comparisons in a circle, verdicts, brevity, the KL term, and the stage with a reward model that it trains and serves."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.rl.loss import kl_estimate
from components.rl.params import Params
from components.rl.rlhf.comparisons import BEST, WORST, comparisons, question, verdict
from components.rl.rlhf.judge import Judge, length_bonus
from components.rl.rlhf.serving import accuracy, served
from components.rl.rollouts import Sample
from components.rl.stage import main
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, parse, read_profile
from stagecraft.data.tasks import FAMILIES
from tests.rl.conftest import copy
from tests.rl.test_prompts import PARAMS
from tests.rl.test_staleness import curve
from tests.stages.commands import begun_at, kill_when, run

PROFILE = Path(__file__).parents[2] / "params.yaml"


class Ranking(Judge):
    """Scores an answer by the number it is, whatever its place; `place` adds to whoever stands first."""

    def __init__(self, place=0):
        super().__init__(PARAMS.preferences)
        self.place, self.asked = place, []

    def scores(self, pairs):
        self.asked += pairs
        return [(int(first) + self.place, int(second)) if (first + second).isdigit() else None for _, first, second in pairs]


def group(*texts, finished=True):
    return [Sample("id", "sort", "request", [1], 0, tokens=[1, 2], text=text, finished=finished, reward=1.0) for text in texts]


def test_each_completion_is_compared_with_the_next_in_a_circle_and_once_in_each_place():
    judge = Ranking(place=1)
    samples = [*group("1", "4", "2"), *group("3", "3", "3")]
    judge.reward(samples, 3)
    assert [pair[1:] for pair in judge.asked] == [("1", "4"), ("4", "2"), ("2", "1"), ("3", "3"), ("3", "3"), ("3", "3")]
    # A judge that favours the first place by a point favours all by half of one.
    assert [each.reward for each in samples] == pytest.approx([(score + 0.5 - WORST) / (BEST - WORST) for score in (1, 4, 2, 3, 3, 3)])
    assert all(each.parts == {"verified": 1.0, "verdict": 1.0} for each in samples)


def test_an_unreadable_verdict_is_a_tie_and_what_was_cut_off_gets_nothing():
    samples = group("5", "x", "1")
    Ranking().reward(samples, 3)
    assert [each.parts["verdict"] for each in samples] == [0, 0, 1]  # of the comparison with the next
    assert samples[0].reward == pytest.approx(((3 + 5) / 2 - WORST) / (BEST - WORST))
    cut = [*group("5", finished=False), *group("1", "1")]
    Ranking().reward(cut, 3)
    assert cut[0].reward == 0


def test_the_length_penalty_comes_on_top_of_the_verdicts_within_each_group():
    judge = Ranking()
    judge.preferences = replace(judge.preferences, length_penalty=0.2)
    samples = [*group("3", "3", "3"), *group("2", "2", "2")]
    for sample, length in zip(samples, (2, 4, 9, 5, 5, 5)):
        sample.tokens = [1] * length
    judge.reward(samples, 3)
    three, two = ((score - WORST) / (BEST - WORST) for score in (3, 2))
    assert [each.reward for each in samples] == pytest.approx(
        [three + 0.2 * 3 / 7, three + 0.2 * 1 / 7, three - 0.2 * 4 / 7, two, two, two])


@given(st.lists(st.integers(1, 500), min_size=2, max_size=16), st.floats(0, 1))
def test_brevity_is_paid_within_the_group(lengths, penalty):
    bonus = length_bonus(lengths, penalty)
    assert sum(bonus) == pytest.approx(0, abs=1e-9)
    assert max(bonus) - min(bonus) == pytest.approx(penalty if len(set(lengths)) > 1 else 0)
    assert [more for _, more in sorted(zip(lengths, bonus))] == sorted(bonus, reverse=True)


def test_verdicts_as_models_write_them():
    assert verdict("<think>close</think> 5 1") == (5, 1) == verdict("Scores: 5, 1.") == verdict("2 of 3 criteria. 5 1")
    assert verdict("**5; 1**") == (5, 1) == verdict("\\boxed{5, 1}") == verdict("First: 4/5, second: 2/5, so\n5\t1\n") == verdict("5,1")
    for text in ("", "5", "<think>5 1</think>", "10 20", "good bad", "First: 4/5\nSecond: 2/5", "4.5 and 3", "5 and 1", "4.5 1", "5 1.5",
                 "5, 1/5", "3/5 1", "5 -1", "-5 1", "15 1", "5 10", "2 5 1", "2, 5, 1", "2;5;1", "5 1: the first is better",
                 "First: 5, Second: 2. The first is better for 3 reasons", "**Score 1**: 5/5 **Score 2**: 1/5"):
        assert verdict(text) is None, text


@given(st.integers(WORST, BEST), st.integers(WORST, BEST), st.sampled_from([" ", ", ", ",", "; ", " , ", "\n"]))
def test_two_scores_alone_are_a_verdict_whatever_stands_between(first, second, between):
    assert verdict(f"<think></think> {first}{between}{second}") == (first, second) == verdict(f"Scores: {first}{between}{second}.")


def test_a_judge_from_elsewhere_is_told_in_which_form_to_answer_and_the_one_trained_here_asked_as_it_was_taught(monkeypatch):
    preferences, asked = replace(PARAMS.preferences, url="http://127.0.0.1:9/v1", model="judge"), []

    async def create(self, *, messages, **_):
        asked.append(messages[0]["content"])
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="5 1"))])

    monkeypatch.setattr("openai.resources.chat.AsyncCompletions.create", create)
    for taught in (False, True):
        assert Judge(preferences, taught).scores([("sum?", "4", "5")]) == [(5, 1)]
    told, bare = asked
    assert bare == question(preferences.principle, "sum?", ("4", "5")) and bare.endswith("\nScores from 1 to 5:")
    assert told.startswith(bare[:-1]) and "two numbers with a blank between them" in told


def test_comparisons_are_scored_by_what_verifies_and_favour_no_place():
    drawn = list(comparisons(600, "0", sorted(FAMILIES)))
    assert drawn == list(comparisons(600, "0", sorted(FAMILIES))) and len({each.request for each in drawn}) == 600
    places = [each.scores[0] > each.scores[1] for each in drawn if each.scores[0] != each.scores[1]]
    assert 0.4 < sum(places) / len(places) < 0.6 and 0.7 < len(places) / 600 < 0.9
    asked = question("be brief", drawn[0].request, ("<think>so</think> yes", "no"))
    assert "so" not in asked.replace("Scores", "") and asked.startswith("Principle: be brief\n")


def test_a_judge_is_right_on_the_comparisons_that_have_a_better_answer_and_without_one_its_accuracy_is_no_number():
    right = SimpleNamespace(scores=lambda pairs: [(BEST, WORST)] * len(pairs))
    found = {heldout: [accuracy(right, replace(PARAMS, seed=seed, preferences=replace(PARAMS.preferences, comparisons=5, heldout=heldout)),
                                ["arithmetic", "tool"]) for seed in range(12)] for heldout in (1, 60)}
    assert {str(each) for each in found[1]} == {"0.0", "1.0", "nan"} and all(0.2 < each < 0.8 for each in found[60])


def test_the_kl_estimate_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    estimates = kl_estimate(policy, reference)
    assert (estimates >= 0).all() and kl_estimate(policy, policy).abs().max() == 0
    exact = sum(math.exp(p) * (p - q) for p, q in zip(policy.tolist(), reference.tolist()))
    assert (policy.exp() * estimates).sum().item() == pytest.approx(exact, rel=1e-12)


def test_an_endpoint_that_does_not_answer_is_one_line():
    preferences = replace(PARAMS.preferences, url="http://127.0.0.1:9/v1", model="none", timeout_seconds=0.2)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1: the endpoint cannot be reached: .* - correct rl.preferences.url, or"):
        Judge(preferences).scores([("a", "b", "c")])


def test_a_reply_in_parts_is_one_line(monkeypatch):
    preferences = replace(PARAMS.preferences, url="http://127.0.0.1:9/v1", model="judge")

    async def create(self, **_):
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=[{"type": "text", "text": "5 1"}]))])

    monkeypatch.setattr("openai.resources.chat.AsyncCompletions.create", create)
    with pytest.raises(UserError, match=r"what answers is no OpenAI endpoint: .* - correct rl.preferences.url"):
        Judge(preferences).scores([("sum?", "4", "5")])


def test_a_key_that_is_not_set_is_told_of_before_any_work_but_for_our_own_server(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    preferences = replace(PARAMS.preferences, enabled=True, url="http://127.0.0.1:9/v1", model="judge", key_variable="JUDGE_KEY")
    for begin in (lambda: Judge(preferences), lambda: main(replace(PARAMS, environments={}, preferences=preferences), {}, {}, None)):
        with pytest.raises(UserError, match=r"rl.preferences.key_variable: the environment variable JUDGE_KEY is not set"):
            begin()
    ours = served(replace(preferences, url="", model=""), SimpleNamespace(url="http://127.0.0.1:8"))
    assert Judge(ours)._endpoint.client.items() >= {"base_url": "http://127.0.0.1:8/v1", "api_key": "none"}.items()
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    assert Judge(preferences)._endpoint.client["api_key"] == "sesame"


def test_half_an_endpoint_and_conversations_are_refused():
    rl = read_profile(PROFILE)["rl"]
    for changes, complaint in (({"preferences": rl["preferences"] | {"enabled": True, "url": "http://x"}}, "name an endpoint together"),
                               ({"preferences": rl["preferences"] | {"enabled": True}, "environments": {"guess": 1.0}}, "single answers")):
        with pytest.raises(UserError, match=complaint):
            parse(Params, rl | changes, "rl")


@pytest.mark.parametrize("url", ["http://judge:PORT/v1", "http://localhost:80OO/v1", "http://[::1/v1", "http:///v1", "http://judge:0/v1"])
def test_an_address_that_no_client_can_be_made_with_is_refused_where_it_is_read(url):
    rl = read_profile(PROFILE)["rl"]
    with pytest.raises(UserError, match=r"^rl\.stages\.rlhf\.preferences\.url: .* - correct the value$"):
        parse(Params, rl | {"stages": {"rlhf": {"preferences": {"enabled": True, "url": url, "model": "judge"}}}}, "rl")


@pytest.mark.slow
def test_the_stage_trains_and_serves_its_own_reward_model_and_a_kill_changes_no_bit(tuned, tmp_path):
    preferences = read_profile(PROFILE)["rl"]["preferences"] | {"enabled": True, "comparisons": 200, "steps": 8, "heldout": 20}
    changes = {"preferences": preferences, "kl": 1.0e-4, "steps": 3, "checkpoint_every": 2,
               "healing": {"steps": 6, "lr": 1.0e-3, "depths": 2, "rollouts": 2, "heldout": 12}}
    where = copy(tuned, tmp_path / "rlhf", **changes)
    metrics = run("rl", where)
    assert 0 <= metrics["reward_model_accuracy"] <= 1 and 0 <= metrics["verified_last"] <= 1
    assert curve(where)[0]["kl"] < 1e-6 < curve(where)[2]["kl"]  # the policy begins as its reference
    assert load(Params, "rl", where / "params.yaml").preferences.enabled
    manifest = json.loads((where / "artifacts/aligned/manifest.json").read_text())
    assert {"reward_model/config.json", "reward_model/model.safetensors"} <= manifest["files"].keys()
    rollout = json.loads((where / "artifacts/aligned/rollouts.jsonl").read_text().splitlines()[0])
    assert {"verified", "verdict"} <= rollout["parts"].keys()

    broken = copy(tuned, tmp_path / "broken", **changes)
    kill_when("rl", broken, "rl/*/reward_model_training/checkpoints/step-*")
    kill_when("rl", broken, "rl/*/stages/*/rollouts/00000001.jsonl")
    kill_when("rl", broken, "rl/*/healing_training/checkpoints/step-*")
    (left,) = (broken / ".work/rl").glob("*/reward_model/config.json")
    left.unlink()  # what is only to be healed needs no judge: this one cannot be served
    assert run("rl", broken)["reward_model_accuracy"] == metrics["reward_model_accuracy"]
    # From a checkpoint each, which is whole while the training goes on, and each but once: its model outlives the other kills.
    assert [[min(done, 1) for done in begun_at(broken, name)] for name in ("reward model", "healing")] == [[0, 1], [0, 1]]
    for name in ("model.safetensors", "rollouts.jsonl", "reward_model/model.safetensors"):
        assert (broken / "artifacts/aligned" / name).read_bytes() == (where / "artifacts/aligned" / name).read_bytes(), name
