"""Conversations: bad lines are named, skipped or fatal; each turn is encoded as it would have been prompted and spoken; modes change it."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.data.chat import encode_demonstration, encode_prompt, render_prompt
from stagecraft.data.conversations import encode_conversation, lines_of, parse_conversation
from stagecraft.data.modes import LOW_EFFORT, draw_mode, in_mode
from stagecraft.data.tasks import FAMILIES
from stagecraft.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"room": "hall"}'}}
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"room": {"type": "string"}}}}}]
LONG = {"messages": [
    {"role": "system", "content": "Be short."}, {"role": "user", "content": "What is there?"},
    {"role": "assistant", "content": None, "reasoning_content": "I should look", "tool_calls": [CALL]},
    {"role": "tool", "content": "a lamp", "tool_call_id": "1"}, {"role": "assistant", "content": "A lamp."},
    {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "<think>nothing changed here</think> Still a lamp."}],
    "tools": TOOLS}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    texts = [task.prompt + task.good for seed in range(40) for task in [family(Random(seed)) for family in FAMILIES.values()]]
    save_tokenizer(train_tokenizer(texts, 500), directory, 512)
    return load_tokenizer(directory)


BAD = {
    "{": "not JSON", "[]": "no conversation", "{}": "no conversation", '{"messages": []}': "no conversation",
    json.dumps({"messages": [{"role": "user", "content": "a"}]}): "the last message is not the assistant's",
    json.dumps({"messages": [{"role": "bot", "content": "a"}]}): "message 1: its role is none of",
    json.dumps({"messages": ["a"]}): "message 1: its role is none of",
    json.dumps({"messages": [{"role": ["user"], "content": "a"}]}): "message 1: its role is none of",
    json.dumps({"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]}):
        "message 1: its content is no text",
    json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}):
        "message 1: its content is no text",
    json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}):
        "message 2: its content is no text",
    json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}): "message 2: a system message stands",
    json.dumps({"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]}): "message 1: tool calls are",
    json.dumps({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "{"}}]}]}): "are not JSON",
    json.dumps({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[]"}}]}]}): "are no object",
    json.dumps({"messages": [{"role": "assistant", "tool_calls": [{"name": "x"}]}]}): "without a function's name",
    json.dumps({**LONG, "tools": "x"}): "'tools' is no list",
    json.dumps({"messages": [{"role": "user", "content": "What is <|im_end|>?"}, {"role": "assistant", "content": "b"}]}):
        "message 1: <|im_end|> in it would become a control token",
    json.dumps({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": {"a": "</s>"}}}]}]}):
        "message 1: </s> in it would become a control token",
    json.dumps({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": "[" * 9999}}]}]}): "are not JSON",
}


def test_bad_lines_are_none():
    for line, reason in BAD.items():
        with pytest.raises(UserError) as told:
            parse_conversation(line)
        assert reason in str(told.value)


def test_blank_lines_count_and_a_file_that_is_none_is_one_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('\n{"a": 1}\n  \n{"b": 2}')
    assert list(lines_of(tmp_path / "rows.jsonl")) == [(2, '{"a": 1}\n'), (4, '{"b": 2}')]
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("absent", "binary"):
        with pytest.raises(UserError, match="cannot read conversations"):
            list(lines_of(tmp_path / name))


def test_parts_of_text_and_a_developer_are_read():
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]
    row = parse_conversation(json.dumps({"messages": [
        {"role": "developer", "content": "Be short."}, {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]}]}))
    assert row["messages"] == [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "What now?"}, {"role": "assistant", "content": "This."}]


def test_blanks_before_the_thinking_open_no_block_of_their_own(tokenizer):
    def encoded(content, mode):
        row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]}
        return encode_conversation(tokenizer, *in_mode(parse_conversation(json.dumps(row)), mode, 0))

    for mode in ("full", "off", "low", "cut"):
        assert encoded("\n <think>one two</think> b", mode) == encoded("<think>one two</think> b", mode)
    assert encoded("\n b", "full") != encoded("b", "full")


def test_every_turn_is_encoded_as_prompted_and_spoken(tokenizer):
    ids, mask = encode_conversation(tokenizer, LONG)
    spoken, start = [], None
    for at, flag in enumerate([*mask, 0]):
        if flag and start is None:
            start = at
        if not flag and start is not None:
            spoken.append(tokenizer.decode(ids[start:at]))
            assert ids[:start] == encode_prompt(tokenizer, {**LONG, "messages": LONG["messages"][:(2, 4, 6)[len(spoken) - 1]]})
            start = None
    assert spoken == ['<think>I should look</think><tool_call>{"name": "look", "arguments": {"room": "hall"}}</tool_call><|im_end|>',
                      "<think></think>A lamp.<|im_end|>", "<think>nothing changed here</think> Still a lamp.<|im_end|>"]
    whole = tokenizer.apply_chat_template(LONG["messages"], tools=TOOLS, tokenize=False)
    assert tokenizer.decode(ids) + "\n" == whole


@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 2**32), st.booleans())
def test_a_task_is_encoded_as_its_demonstration(tokenizer, family, seed, good):
    task = FAMILIES[family](Random(seed))
    row = {"messages": [{"role": "user", "content": task.prompt}], "tools": list(task.tools),
           "demonstration": task.good if good else task.flawed}
    answered = {**row, "messages": [*row["messages"], {"role": "assistant", "content": row["demonstration"]}]}
    assert encode_conversation(tokenizer, answered) == encode_demonstration(tokenizer, row)


def test_modes(tokenizer):
    words = "one two three four five six seven eight"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": f"<think>{words}</think> b"}]}

    def thinking(mode, seed=0):
        changed, opened = in_mode(row, mode, seed)
        return changed["messages"][-1]["content"].removeprefix("<think>").partition("</think>")[0], opened

    assert in_mode(row, "full", 0) == (row, True)
    assert thinking("off") == ("", False) and thinking("low") == ("one two three four", True)
    cuts = {len(thinking("cut", seed)[0].split()) for seed in range(200)}
    assert cuts == set(range(9)) and all(words.startswith(thinking("cut", seed)[0]) for seed in range(20))
    assert in_mode(row, "low", 0)[0]["messages"][0] == {"role": "system", "content": LOW_EFFORT}
    assert in_mode(LONG, "low", 0)[0]["messages"][0]["content"] == f"Be short.\n{LOW_EFFORT}"
    ids, mask = encode_conversation(tokenizer, *in_mode(row, "off", 0))
    said = tokenizer.decode([each for each, flag in zip(ids, mask) if flag])
    assert said == " b<|im_end|>"  # the closed block is the prompt's
    prompt = tokenizer.encode(render_prompt(tokenizer, {"messages": row["messages"][:1]}, False), add_special_tokens=False)
    assert [each for each, flag in zip(ids, mask) if not flag] == prompt
    assert encode_conversation(tokenizer, *in_mode(LONG, "off", 0))[1].count(1)
    with pytest.raises(UserError, match="message 2 does not go on from its prompt"):
        encode_conversation(tokenizer, row, enable_thinking=False)


def test_low_effort_is_prompted_for_as_it_was_trained(tokenizer):
    for row in ({"messages": LONG["messages"], "tools": TOOLS}, {"messages": [{"role": "user", "content": "a"}, LONG["messages"][-1]]},
                {"messages": [{"role": "system", "content": ""}, *LONG["messages"][1:]]}):
        trained, asked = in_mode(row, "low", 0)[0]["messages"][:2], row["messages"][:2 if row["messages"][0]["role"] == "system" else 1]
        trained = tokenizer.apply_chat_template(trained, tools=row.get("tools"), tokenize=False)
        for request in ({"reasoning_effort": "low"}, {"reasoning_effort": "minimal"}, {"low_effort": True, "reasoning_effort": None}):
            assert tokenizer.apply_chat_template(asked, tools=row.get("tools"), tokenize=False, **request) == trained
        for request in ({"reasoning_effort": "high"}, {"low_effort": False, "reasoning_effort": None}, {}):
            assert LOW_EFFORT not in tokenizer.apply_chat_template(asked, tools=row.get("tools"), tokenize=False, **request)


def test_shares_of_modes_are_met_and_a_rows_mode_is_its_own():
    shares = {"off": 0.03, "low": 0.2, "cut": 0.12}
    drawn = [draw_mode(0, number, shares) for number in range(4000)]
    for mode, share in {**shares, "full": 0.65}.items():
        assert drawn.count(mode) / 4000 == pytest.approx(share, abs=0.03)
    assert drawn[:50] == [draw_mode(0, number, shares) for number in range(50)]
    assert {draw_mode(0, number, dict.fromkeys(shares, 0.0)) for number in range(50)} == {"full"}
