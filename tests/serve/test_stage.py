"""The whole stage on a tiny random model: real servers, real requests; and what it says to a verdict it cannot serve."""

import json
from dataclasses import replace
from statistics import fmean, pstdev

import pytest
import torch
from tokenizers import Tokenizer
from transformers import NemotronHForCausalLM

from components.serve import stage
from components.serve.checks import Answer, CheckFailedError
from components.serve.drafts import acceptance, compare, noise
from components.serve.prompts import draw_rows
from components.serve.reasoning import counter
from stagecraft.contract.errors import UserError
from stagecraft.contract.runlog import RunLog
from stagecraft.data.tasks import FAMILIES
from tests.serve.conftest import inputs, params, promote


def test_metrics(served):
    metrics = served.metrics
    assert metrics["promoted"] == "aligned"
    assert metrics["tokens_per_second"] > 0
    assert 0 < metrics["time_to_first_token_ms_p50"] <= metrics["time_to_first_token_ms_p95"]
    assert 1 <= metrics["mtp_mean_accepted_length"] <= 1 + params().server.draft_tokens
    assert metrics["mtp_identical"] == 1.0  # float32: speculative decoding changes nothing
    assert metrics["mtp_mean_accepted_length"] == pytest.approx(1 + metrics["mtp_acceptance_1"] + metrics["mtp_acceptance_2"])
    for name in ("mtp_mean_accepted_length", "mtp_acceptance_1", "mtp_acceptance_2", "exact_match"):
        assert metrics[f"{name}_stderr"] >= 0


def test_report(served):
    report = served.read("report.json")
    assert report["checks"]["schema"].keys() == {"city", "days"}
    assert report["checks"]["tool_call"] == {"name": "pay", "arguments": {"to": "Ann", "amount": 5}}
    assert report["checks"]["streaming"]["pieces"] > 1
    assert [(level["concurrency"], level["requests"]) for level in report["load"]] == [(1, 1), (3, 3)]
    for level in report["load"]:
        for name in ("ttft_ms", "itl_ms", "latency_ms"):
            assert 0 < level[f"{name}_p50"] <= level[f"{name}_p95"] <= level[f"{name}_p99"]
        assert level["ttft_ms_p50"] < level["latency_ms_p50"]
    assert report["mtp"]["rounding_nats"] < 1e-3
    assert report["mtp"]["drafts"] > 0


def test_reasoning_modes(served):
    modes = {each["mode"]: each for each in served.read("report.json")["modes"]}
    assert list(modes) == ["off", "low", "regular", "budget"]
    for name, each in modes.items():
        assert each["prompts"] == 4 and each["answer_tokens"] + each["thinking_tokens"] <= 24
        assert served.metrics["modes"][name] == {key: value for key, value in each.items() if isinstance(value, float)}
    assert modes["budget"]["thinking_tokens"] <= modes["budget"]["request"]["thinking_token_budget"]


def test_thinking_is_what_lies_between_the_tags(project):
    tokenizer = Tokenizer.from_file(str(project / "aligned" / "tokenizer.json"))
    count = counter(tokenizer)
    for text, expected in (("<think>1+1</think> 2<|im_end|>", (3, 2)), ("<think></think>2", (0, 1)), ("<think>1+1", (3, 0)), ("2", (0, 1))):
        assert count(tokenizer.encode(text, add_special_tokens=False).ids) == expected


def test_served_tokens_are_those_of_transformers(project, served):
    tokenizer = Tokenizer.from_file(str(project / "aligned" / "tokenizer.json"))
    model = NemotronHForCausalLM.from_pretrained(project / "aligned").eval()
    asked = [answer for answer in served.read("report.json")["transcript"] if answer["family"] != "tool"]
    assert len(asked) == len(FAMILIES) - 1
    for answer in asked:
        text = f"<|im_start|>user\n{answer['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, eos_token_id=4)[0, len(prompt):].tolist()
        assert answer["tokens"] == ids


def test_nothing_promoted(tmp_path):
    promote(tmp_path, None, reason="nothing is promoted: aligned beats sft by at least 5.0 points - found 1.0 points")
    with pytest.raises(UserError, match=r"promotion.json: there is no model to serve: nothing is promoted: .* 1.0 points - see report"):
        stage.main(params(), inputs(tmp_path), {}, RunLog("serve", tmp_path, tmp_path))


def test_what_is_promoted_may_be_no_input(tmp_path):
    promote(tmp_path, "base", digest="0" * 64)
    with pytest.raises(UserError, match=r"promotion\.json: promotes 'base', .*gate\.candidates name aligned, fp8, nvfp4 only"):
        stage.main(params(), inputs(tmp_path), {}, RunLog("serve", tmp_path, tmp_path))


def test_a_model_that_changed_since_it_was_evaluated(project, tmp_path):
    promote(tmp_path, "aligned", digest="0" * 64)
    with pytest.raises(UserError, match="not the one that was evaluated"):
        stage.main(params(), {**inputs(tmp_path), "aligned": project / "aligned"}, {}, RunLog("serve", tmp_path, tmp_path))


def test_a_server_that_needs_more_time_than_it_is_given(project, tmp_path):
    hasty = replace(params(), server=replace(params().server, startup_seconds=0.1))
    late = r"serve\.server\.startup_seconds: the server of .*aligned was not healthy after 0\.1 seconds - give it more time; what it said"
    with pytest.raises(UserError, match=late):
        stage.main(hasty, inputs(project), {"serving": tmp_path}, RunLog("serve", tmp_path, tmp_path))


@pytest.mark.parametrize(("part", "max_tokens"), [("check", 370), ("modes", 365), ("load", 370)])
def test_a_prompt_that_leaves_its_answer_too_little_room(project, tmp_path, part, max_tokens):
    """Answers as long as that would be cut by the server, which would then be blamed."""
    long = replace(params(), **{part: replace(getattr(params(), part), max_tokens=max_tokens)})
    refused = rf"the prompt of serve-\w+-\d+ has \d+ tokens, {part}\.max_tokens leaves {384 - max_tokens} - raise it to"
    with pytest.raises(UserError, match=rf"serve\.server\.max_model_len: {refused}"):
        stage.main(long, inputs(project), {}, RunLog("serve", tmp_path, tmp_path))


def test_prompts_are_drawn_by_the_seed_and_cover_every_family():
    assert draw_rows(2, 1) == draw_rows(2, 1) != draw_rows(2, 2)
    assert {row["family"] for row in draw_rows(1, 0)} == set(FAMILIES)
    assert len({json.dumps(row["messages"]) for row in draw_rows(4, 0)}) == 4 * len(FAMILIES)
    assert [row["family"] for row in draw_rows(2, 0, ["sort", "tool"])] == ["sort", "tool"] * 2


def _answer(tokens, gaps):
    return Answer(tokens=tokens, gaps=gaps, finished=True, message=None)


def test_drafts_may_change_a_tie_and_nothing_else():
    rows = [{"messages": [{"role": "user", "content": "x"}]}] * 2
    plain = [_answer([5, 6, 7], [1.0, 1e-6, 1.0]), _answer([8], [2.0])]
    assert compare(rows, plain, plain, tie=1e-3) == 1.0
    assert compare(rows, plain, [_answer([5, 9, 9], []), plain[1]], tie=1e-3) == 0.5
    for wrong in ([5, 6, 8], [5, 6], [9, 6, 7]):
        with pytest.raises(CheckFailedError, match="drafts changed the answer to 'x'"):
            compare(rows, plain, [_answer(wrong, []), plain[1]], tie=1e-3)
    with pytest.raises(CheckFailedError, match="2 of 2"):
        compare(rows, plain, [_answer([5, 9], []), _answer([1], [])], tie=5.0)


def test_errors_of_acceptance_are_those_of_the_steps_counted(tmp_path):
    """40 steps of which 10 accept two drafts, 10 one, 20 none; read from a file in the counters' format."""
    steps = [2] * 10 + [1] * 10 + [0] * 20
    places = "".join(f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="{place}"}} {sum(each > place for each in steps)}\n'
                     for place in range(2))
    (tmp_path / "metrics").write_text(f"vllm:spec_decode_num_drafts_total 40\nvllm:spec_decode_num_accepted_tokens_total {sum(steps)}\n"
                                      + places)
    found = acceptance(tmp_path.as_uri(), 2)
    assert found["mean_accepted_length"] == 1 + fmean(steps)
    assert found["mean_accepted_length_stderr"] == pytest.approx(pstdev(steps) / 40**0.5)
    assert found["acceptance_by_position"] == [0.5, 0.25]
    errors = [pstdev([each > place for each in steps]) / 40**0.5 for place in range(2)]
    assert found["acceptance_by_position_stderr"] == pytest.approx(errors)


def test_noise_is_the_largest_move_of_a_gap():
    alone, together = [_answer([1, 2, 3], [1.0, 0.5, 0.2])], [_answer([1, 2, 4], [1.1, 0.5, 0.3])]
    assert noise(alone, alone) == 0.0
    assert noise(alone, together) == pytest.approx(0.5)  # the best and the second best changed places: 0.2 + 0.3
