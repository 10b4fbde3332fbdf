"""A challenger against the registered champion: what it may lose, what is no comparison, and who stays."""

import copy
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluate.champion import objections
from components.evaluate.foresee import unprovable_loss
from tests.evaluate.made import PROTOCOL

RULES = {"family_max_loss": 0.1, "family_confidence": 0.95, "other_protocol": "refuse"}


def record(right=80, needle=0.5, **protocol):
    """100 prompts of `sort`, the first `right` solved; 20 of `needle` with partial scores."""
    return {"protocol": {**PROTOCOL, **protocol}, "rules": dict(RULES),
            "scores": {"sort": [float(i < right) for i in range(100)], "needle": [needle] * 20}}


@pytest.mark.parametrize(("right", "reason"), [(85, None), (80, None), (78, None), (60, r"sort is 20.0 ± 4.0 points worse")])
def test_a_family_may_lose_little_for_sure(right, reason):
    found = objections(record(right), record(80))
    assert len(found) == (reason is not None)
    if reason:
        assert reason in found[0]


def test_a_loss_within_the_limit_that_is_not_sure_is_an_objection():
    """5 points lost on 25 prompts that changed: 15 lost, 10 won; the bound is below 10 points."""
    champion, challenger = record(80), record(80)
    challenger["scores"]["sort"] = [float((not i < 15 and i < 80) or 80 <= i < 90) for i in range(100)]
    assert "lower 95% bound -13." in objections(challenger, champion)[0]


def test_a_gain_that_is_not_sure_is_called_one():
    champion, challenger = record(80), record(80)
    challenger["scores"]["sort"] = [float(10 <= i < 95) for i in range(100)]
    assert re.match(r"sort is 5\.0 ± 5\.0 points better \(lower 95% bound -3\.\d, allowed -2\.0\)", objections(
        {**challenger, "rules": {**RULES, "family_max_loss": 0.02}}, champion)[0])


def test_benchmarks_count_like_families():
    assert "needle is 20.0" in objections(record(needle=0.3), record(needle=0.5))[0]


def recorded(**scores):
    return {"protocol": PROTOCOL, "rules": {**RULES, "family_max_loss": 0.25}, "scores": scores}


def test_a_little_worse_everywhere_is_worse():
    """Six families of 100 prompts, 80 of each solved before and 68 now: each loss is within the limit, and the next one would be."""
    champion = recorded(**{f"family{i}": [1.0] * 80 + [0.0] * 20 for i in range(6)})
    challenger = recorded(**{f"family{i}": [1.0] * 68 + [0.0] * 32 for i in range(6)})
    assert objections(challenger, champion) == ["over all prompts it is 12.0 ± 1.3 points worse, which is sure at 95%"]
    assert objections(champion, challenger) == []


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=120), st.sampled_from([1, 2, 3]))
def test_no_challenger_that_answers_as_many_is_worse_over_all(answers, families):
    """Whatever the families say, which have their own limit: here none that could be passed."""
    fewer, more = sorted((list(each) for each in zip(*answers)), key=sum)
    pair = [recorded(**{f"family{i}": [float(each) for each in scores] for i in range(families)}) for scores in (more, fewer)]
    pair[0]["rules"]["family_max_loss"] = 2.0
    assert objections(*pair) == []


@given(st.integers(2, 300), st.sampled_from([0.9, 0.95, 0.99]))
def test_a_limit_is_foreseen_to_be_out_of_reach_where_equal_answers_do_not_meet_it(prompts, confidence):
    challenger = recorded(family=[1.0] * prompts)
    for share, met in ((0.999, False), (1.001, True)):
        challenger["rules"] |= {"family_max_loss": share * unprovable_loss(prompts, confidence), "family_confidence": confidence}
        assert (objections(challenger, challenger) == []) == met


@pytest.mark.parametrize("champion", [None, record(seed=2)])
def test_another_protocol_is_refused_or_replaced_as_the_rules_say(champion):
    challenger = record(100)
    assert "another protocol" in objections(challenger, champion)[0]
    willing = copy.deepcopy(challenger)
    willing["rules"]["other_protocol"] = "replace"
    assert objections(willing, champion) == []
    willing["rules"]["other_protocol"] = "replace_gone"
    assert objections(willing, champion, gone=True) == []
    assert "to replace it without a comparison, set evaluate.gate.other_protocol to replace" in objections(willing, champion)[0]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A registry of its own, in a directory of its own."""
    from stagecraft.contract.tracking import connect

    root = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield connect(f"sqlite:///{root}/mlflow.db")


def verdict(digest, recorded):
    return {"promoted": "nvfp4", "digest": digest * 64, "protocol_digest": "p" * 64, "reason": "made", "record": recorded}


def test_the_registry_keeps_the_champion_that_a_challenger_falls_behind(client):
    from stagecraft.contract.errors import UserError
    from stagecraft.contract.registry import promote, registered

    def champion():
        return client.get_model_version_by_alias("stagecraft", "champion").tags["digest"][0]

    with pytest.raises(UserError, match="no registered model has this alias"):
        registered(client, "champion")
    assert promote(client, verdict("a", record(80))) == "1"
    with pytest.raises(UserError, match=r"does not replace the champion \(version 1\): sort is 20.0"):
        promote(client, verdict("b", record(60)))
    assert champion() == "a"
    assert promote(client, verdict("a", record(80))) == "1", "the same model again is no challenger"
    assert promote(client, verdict("c", record(82))) == "2"
    assert champion() == "c"
    assert promote(client, {**verdict("d", None), "promoted": None}) is None
    assert champion() == "c"
    other, notes = record(10, seed=2), []
    with pytest.raises(UserError, match="another protocol"):
        promote(client, verdict("d", other), note=notes.append)
    assert notes == []
    other["rules"]["other_protocol"] = "replace"
    assert promote(client, verdict("d", other), note=notes.append) == "3"
    assert notes == ["nvfp4 replaces the champion (version 2, whose model is gone) without a comparison: "
                     "it was measured by another protocol (in seed)"]
    back = record(82)
    back["rules"]["other_protocol"] = "replace"
    assert promote(client, verdict("c", back)) == "2"


def test_an_alias_is_where_the_registered_model_lies(client, tmp_path, monkeypatch):
    from stagecraft.contract import manifest
    from stagecraft.contract.errors import UserError
    from stagecraft.contract.registry import promote, registered
    from stagecraft.contract.stages import PATHS

    monkeypatch.chdir(tmp_path)
    PATHS["nvfp4"].mkdir(parents=True)
    (PATHS["nvfp4"] / "weights").write_text("1")
    described = {"stage": "quantize", "params": {}, "inputs": {}, "code": "", "environment": {}, "metrics": {}}
    digest = manifest.write(PATHS["nvfp4"], **described)
    promote(client, {**verdict("e", record(90)), "digest": digest})
    assert registered(client, "champion") == PATHS["nvfp4"].absolute()
    other, notes = record(10, seed=3), []
    other["rules"]["other_protocol"] = "replace_gone"
    with pytest.raises(UserError, match=r"does not replace the champion .* another protocol \(in seed\); to replace it"):
        promote(client, verdict("f", other), note=notes.append)
    (PATHS["nvfp4"] / "weights").write_text("2")
    manifest.write(PATHS["nvfp4"], **described)
    with pytest.raises(UserError, match="another model lies here now"):
        registered(client, "champion")
    promote(client, verdict("f", other), note=notes.append)
    assert len(notes) == 1 and "whose model is gone) without a comparison" in notes[0]


def test_a_registry_that_fails_is_not_taken_for_an_empty_one(client, monkeypatch):
    from mlflow.exceptions import MlflowException

    from stagecraft.contract.registry import promote

    def fail(*_):
        raise MlflowException("the database is locked")

    monkeypatch.setattr(client, "get_model_version_by_alias", fail)
    with pytest.raises(MlflowException, match="locked"):
        promote(client, verdict("f", record(10)))
