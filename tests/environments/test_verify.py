"""Rewards: exact, strict about thinking and tool calls, and never fooled by an unfinished completion."""

import json
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.environments import split_thinking, verify
from stagecraft.environments.items import items_of
from stagecraft.environments.written import code_of

TEXT = {"id": "t", "verifier": {"kind": "text", "answer": "lamp cat"}}
NUMBER = {"id": "n", "verifier": {"kind": "number", "answer": 40}}
CALL = {"id": "c", "verifier": {"kind": "tool_call", "name": "pay", "arguments": {"to": "Ada", "amount": 1}}}


def call(value) -> str:
    return f"<tool_call>{json.dumps(value)}</tool_call>"


@pytest.mark.parametrize("row, completion", [
    (TEXT, "<think></think>lamp cat"), (TEXT, "lamp cat"), (TEXT, " <think>two words\nhere</think>\n lamp   cat\n"),
    (NUMBER, "<think>1+39=40</think>40"), (NUMBER, "<think></think> 40 "),
    (CALL, "<think></think>" + call({"name": "pay", "arguments": {"amount": 1, "to": "Ada"}})),
    (CALL, call({"arguments": {"to": "Ada", "amount": 1}, "name": "pay"}) + "\n"),
])
def test_right_answers_score_one(row, completion):
    reward = verify(row, completion)
    assert reward.score == 1 and set(reward.parts.values()) == {1.0}


@pytest.mark.parametrize("row, completion", [
    (TEXT, "<think></think>cat lamp"), (TEXT, "<think></think>Lamp cat"), (TEXT, ""), (TEXT, "<think>lamp cat</think>"),
    (TEXT, "<think>lamp cat"), (TEXT, "</think>lamp cat"), (TEXT, "<think><think></think>lamp cat"),
    (TEXT, "<think></think></think>lamp cat"), (TEXT, "lamp <think></think>cat"), (TEXT, "</think><think>lamp cat"),
    (TEXT, "<think></think>lamp cat<think></think>"),
    (NUMBER, "040"), (NUMBER, "+40"), (NUMBER, "40.0"), (NUMBER, "4 0"), (NUMBER, "４０"), (NUMBER, "40 or 41"), (NUMBER, "-40"),
    (CALL, call({"name": "pay", "args": {"to": "Ada", "amount": 1}})),
    (CALL, call({"name": "pay", "arguments": {"to": "Ada", "amount": "1"}})),
    (CALL, call({"name": "pay", "arguments": {"to": "Ada", "amount": True}})),
    (CALL, call({"name": "pay", "arguments": {"to": "Ada"}})),
    (CALL, call({"name": "pay", "arguments": {"to": "Ada", "amount": 1, "note": ""}})),
    (CALL, call({"name": "buy", "arguments": {"to": "Ada", "amount": 1}})),
    (CALL, call({"name": "pay", "arguments": {"to": "Ada", "amount": 1}, "id": 1})),
    (CALL, call([])), (CALL, "<tool_call>{</tool_call>"), (CALL, "<tool_call></tool_call>"),
    (CALL, call({"name": "pay", "arguments": {"to": "Ada", "amount": 1}}) * 2),
    (CALL, "ok " + call({"name": "pay", "arguments": {"to": "Ada", "amount": 1}})),
    (CALL, '<tool_call>{"name": "buy", "name": "pay", "arguments": {"to": "Ada", "amount": 1}}</tool_call>'),
    (CALL, "<tool_call>" + "[" * 5000 + "</tool_call>"),
])
def test_everything_else_scores_zero(row, completion):
    assert verify(row, completion).score == 0


@given(st.integers() | st.sampled_from([0, -1]), st.from_regex(r"[ +-]?0*[0-9]{1,3}\n?", fullmatch=True) | st.integers().map(str))
@example(0, "-0")
@example(0, "00")
@example(7, "07")
@example(-7, "-07")
@example(-7, "-7")
@example(5, "1" * 5000)
@example(-5, "-" + "1" * 5000)
def test_a_number_is_right_where_its_value_is_and_it_is_written_as_usual(answer, given):
    parts = verify({"id": "n", "verifier": {"kind": "number", "answer": answer}}, given).parts
    sign, digits = given.strip().startswith("-"), given.strip().removeprefix("-")
    usual = digits.isdigit() and (digits[0] != "0" or (digits == "0" and not sign))
    assert parts["format"] == usual
    assert parts["correct"] == (usual and len(digits) < 4300 and int(given) == answer)


@pytest.mark.parametrize("row, completion", [(TEXT, "lamp cat"), (NUMBER, "40")])
def test_unfinished_scores_zero(row, completion):
    reward = verify(row, completion, finished=False)
    assert reward.score == 0 and reward.parts["finished"] == 0


def test_parts_tell_a_wrong_argument_from_a_wrong_form():
    wrong_argument = verify(CALL, call({"name": "pay", "arguments": {"to": "Ben", "amount": 1}})).parts
    wrong_form = verify(CALL, call({"name": "pay", "args": {}})).parts
    assert (wrong_argument["format"], wrong_argument["name"], wrong_argument["arguments"]) == (1, 1, 0)
    assert wrong_form["format"] == 0


def test_unknown_verifier_is_one_line():
    with pytest.raises(UserError, match="task row x: unknown verifier 'magic'"):
        verify({"id": "x", "verifier": {"kind": "magic"}}, "a")


@given(st.text(), st.text())
def test_thinking_splits_exactly(thinking, answer):
    if "think>" not in thinking + answer:
        assert split_thinking(f"<think>{thinking}</think>{answer}") == (thinking, answer)
        assert split_thinking(f"<think>{thinking}{answer}") is None


VALUES = st.recursive(st.none() | st.integers() | st.sampled_from(["pay", "<tool_call>", "</tool_call>", "é"]),
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2), max_leaves=4)
CALLS = st.fixed_dictionaries({"name": VALUES, "arguments": VALUES}, optional={"id": VALUES}) | st.fixed_dictionaries(
    {"name": st.text(max_size=3), "arguments": st.dictionaries(st.text(max_size=3), VALUES, max_size=2)})
PIECES = CALLS.map(call) | st.sampled_from(["<tool_call>", "</tool_call>", " ", "\n", "ok", '{"name": "a", "arguments": {}}'])


@given(st.lists(PIECES, max_size=3).map("".join))
@example(call({"name": 5, "arguments": {}}))
@example(call({"name": "pay", "arguments": {"to": "</tool_call>"}}))
@example("\n" + call({"name": "pay", "arguments": {"to": "<tool_call>"}}) + " ")
@example('<tool_call>{"name": "pay", "arguments": {"to": {"a": 1, "a": 1}}}</tool_call>')
def test_a_verifier_and_an_episode_agree_on_what_is_one_tool_call(completion):
    items = items_of(completion, 0)
    lone = items is not None and [item["type"] for item in items] == ["function_call"]
    assert verify(CALL, completion).parts["format"] == lone
    if lone:
        wanted = {"name": items[0]["name"], "arguments": json.loads(items[0]["arguments"])}
        assert verify({"id": "c", "verifier": {"kind": "tool_call", **wanted}}, completion).score == 1


def test_a_flood_of_calls_that_never_end_is_read_in_no_time():
    started = time.process_time()
    assert items_of("<tool_call>" * 10_000, 0) is None and verify(CALL, "<tool_call>" * 10_000).score == 0
    assert time.process_time() - started < 1


@pytest.mark.parametrize("answer", [
    "```python\nx = 1\n```", "Here:\n```\ny\n```\nor\n```py \t\nx = 1\n```.", "```python  \nx = 1\n```", "x = 1\n",
    "Run it:\n```bash\npip install x\n```\nThen the function:\n```python\nx = 1\n```",
    "```python\nx = 1\n```\nIt prints\n```text\n1\n```\nDone.\n```",
    "```python3\nx = 1\n```", "Here: ```Python title=x\nx = 1\n```", "```python\nx = 1\n```\nIts output:\n```\n1\n```",
    "As ```x``` is\n```python\nx = 1\n```", "```sh\ny\n```\n```\nx = 1\n```",
])
def test_code_is_the_last_block_in_a_fence_or_the_whole_answer(answer):
    assert code_of(answer) == "x = 1\n"


@given(st.sampled_from([TEXT, NUMBER, CALL]), st.text(alphabet="<think>/ol_ca{}\":4 0lamp", max_size=60))
def test_no_text_makes_it_fail(row, completion):
    assert verify(row, completion).score in (0, 1)
