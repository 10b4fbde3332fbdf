"""The gate as a table of cases, on made-up answers."""

from dataclasses import replace

import pytest

from components.evaluate import gate, summary
from stagecraft.contract.errors import UserError
from tests.evaluate.made import GATE, five, result


def decide(results, settings=GATE):
    scores = {name: summary.score(each) for name, each in results.items()}
    return gate.decide(scores, summary.compare(results, 0.95), settings)


CASES = {
    "all is well": ({}, {}, "nvfp4", "first candidate"),
    "nvfp4 loses too much": ({"nvfp4": range(60, 400)}, {}, "fp8", "nvfp4 failed"),
    "nvfp4 loses little, but who knows": ({"nvfp4": [*range(60, 400), *range(400, 436)]}, {}, "fp8", "bound -6"),
    "both quantised lose too much": ({"nvfp4": range(60, 400), "fp8": range(50, 400)}, {}, "aligned", "fp8 failed"),
    "nothing is good enough": ({}, {"min_exact_match": 0.7}, None, "at least 70%"),
    "alignment gained nothing": ({"aligned": range(240), "fp8": range(240), "nvfp4": range(240)}, {}, None, "beats sft"),
    "alignment gained, but less than asked": ({"aligned": range(265)}, {}, None, "at least 5.0 points"),
    "alignment may have gained": ({"aligned": [*range(130, 246), *range(246, 380)]}, {"aligned_min_gain": 0.01}, None, "for sure"),
    "the base model knows the tasks": ({"base": range(100)}, {}, None, "cannot do the tasks yet"),
    "fp8 alone is a candidate": ({}, {"candidates": ["fp8"]}, "fp8", "first candidate"),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name):
    solved, changed, promoted, reason = CASES[name]
    verdict = decide(five(**solved), replace(GATE, **changed))
    assert verdict.promoted == promoted
    assert reason in verdict.reason
    assert verdict.reason.startswith("nothing is promoted") == (promoted is None)


def test_twelve_prompts_promote_nothing():
    """Every answer of aligned and nvfp4 is right, and the two differ in nothing: that says little of a 13th."""
    solved = {"base": range(0), "sft": range(8), "aligned": range(12), "fp8": range(12), "nvfp4": range(12)}
    verdict = decide({name: result(name, right, prompts=12) for name, right in solved.items()})
    assert verdict.promoted is None
    assert [check.passed for check in verdict.checks["nvfp4"]] == [True, False]
    assert "bound -18.6 points" in verdict.checks["nvfp4"][1].found


def test_a_base_model_that_cannot_predict_text_stops_everything():
    results = {**five(), "base": result("base", range(3), bits_per_byte=3.0)}
    verdict = decide(results)
    assert verdict.promoted is None
    assert "2.4 bits per byte" in verdict.reason


def test_every_rule_is_on_record_even_when_the_first_one_fails():
    verdict = decide(five(base=range(100)))
    assert list(verdict.checks) == ["pipeline", "nvfp4", "fp8", "aligned"]
    assert [len(checks) for checks in verdict.checks.values()] == [4, 2, 2, 1]


@pytest.mark.parametrize(("field", "value"), [
    ("max_new_tokens", 17), ("prompt_template", "z" * 64), ("stop", [4, 2]), ("hardware", "another")])
def test_figures_of_differing_protocols_refuse_to_be_compared(field, value):
    results = five()
    results["aligned"]["protocol"] = {**results["aligned"]["protocol"], field: value}
    with pytest.raises(UserError, match=f"different protocols: {field} differ"):
        summary.compare(results, 0.95)


def test_model_and_precision_may_differ():
    comparisons = summary.compare(five(), 0.95)
    assert list(comparisons) == ["sft_minus_base", "aligned_minus_sft", "fp8_minus_aligned", "nvfp4_minus_aligned"]
    nvfp4 = comparisons["nvfp4_minus_aligned"].exact_match
    assert (nvfp4.wins, nvfp4.losses, nvfp4.n) == (1, 5, 600)


def test_metrics_carry_the_names_read_from_outside():
    results = five()
    scores = {name: summary.score(each) for name, each in results.items()}
    figures = summary.metrics(scores, summary.compare(results, 0.95))
    for name in ("base", "sft", "aligned", "fp8", "nvfp4"):
        assert {"bits_per_byte", "exact_match", "exact_match_stderr", "families"} <= figures[name].keys()
        assert figures[name]["families"]["sort"].keys() == {"exact_match", "stderr", "n"}
    assert figures["aligned"]["exact_match"] == pytest.approx(400 / 600)
    assert figures["sft"]["pass_at_4"] > figures["sft"]["pass_at_1"]
    for name in ("unfinished", "answer_tokens", "pass_at_1", "pass_at_4", "bits_per_byte"):
        assert f"{name}_stderr" in figures["sft"]
    needle = figures["sft"]["benchmarks"]["needle"]
    assert needle["pass_at_2_stderr"] > 0 and needle["strata"]["60 words"].keys() == {"score", "stderr", "n"}
    against = figures["comparisons"]["aligned_minus_sft"]
    assert {"minimum_detectable", "bits_per_byte_minimum_detectable"} <= against.keys()
    assert against["benchmarks"]["needle"].keys() == {"difference", "stderr", "p_value", "n", "p_value_adjusted", "minimum_detectable"}
    assert sum(family["n"] for family in figures["base"]["families"].values()) == 600
