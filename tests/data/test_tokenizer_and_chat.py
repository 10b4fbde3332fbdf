"""Tokenizer and chat template: exact round trips, single digits, and what transformers renders is what we encode."""

import argparse
import inspect
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.data.chat import encode_demonstration, encode_prompt, render_prompt
from stagecraft.data.tasks import FAMILIES, draw_splits
from stagecraft.data.tokenizer import MARKERS, SPECIAL, load_tokenizer, save_tokenizer, train_tokenizer

VOCABULARY = 700
TOOL = {"type": "function", "function": {"name": "pay", "description": "Pay somebody.", "parameters": {
    "type": "object", "properties": {"to": {"type": "string"}, "amount": {"type": "integer"}}}}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([inspect.getsource(argparse)], VOCABULARY), directory, 512)
    return directory


@pytest.fixture(scope="module")
def tokenizer(directory):
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def rows():
    return draw_splits({"sft": 70, "rl": 7, "heldout": 7}, dict.fromkeys(FAMILIES, 0.5), 0)["sft"]


def test_ids_of_the_special_tokens(tokenizer):
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.convert_tokens_to_ids([*SPECIAL, *MARKERS]) == list(range(9))
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 4)
    assert set(tokenizer.all_special_tokens) == set(SPECIAL)


def test_markers_survive_decoding_and_control_tokens_do_not(tokenizer):
    ids = tokenizer.encode("<|im_start|><think>a</think><tool_call>{}</tool_call><|im_end|></s>", add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think><tool_call>{}</tool_call>"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(text=st.text(max_size=80))
def test_any_text_round_trips_and_digits_stand_alone(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert all(len(token) == 1 for token in tokenizer.convert_ids_to_tokens(ids) if any(c in "0123456789" for c in token))


def test_no_token_of_the_vocabulary_joins_digits(tokenizer):
    assert [token for token in tokenizer.get_vocab() if any(c in "0123456789" for c in token) and len(token) > 1] == []


def test_reserved_tokens_are_special_and_move_no_other_before_them(tmp_path):
    save_tokenizer(train_tokenizer([inspect.getsource(argparse)], VOCABULARY, 3), tmp_path, 512)
    tokenizer = load_tokenizer(tmp_path)
    names = [f"<|reserved_{number}|>" for number in range(3)]
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.convert_tokens_to_ids([*SPECIAL, *MARKERS, *names]) == list(range(12))
    assert set(tokenizer.all_special_tokens) == {*SPECIAL, *names}
    assert tokenizer.encode("a<|reserved_1|>b", add_special_tokens=False)[1] == 10
    assert tokenizer.decode(tokenizer.encode("a<|reserved_1|>b<think>"), skip_special_tokens=True) == "ab<think>"
    with pytest.raises(UserError, match=f"alone take {256 + 9 + 500}"):
        train_tokenizer(["a"], VOCABULARY, 500)


def test_training_is_deterministic():
    first, second = (train_tokenizer([inspect.getsource(argparse)], VOCABULARY).to_str() for _ in range(2))
    assert first == second


def test_demonstration_is_what_the_template_renders(tokenizer, rows):
    for row in rows:
        ids, mask = encode_demonstration(tokenizer, row)
        messages = [*row["messages"], {"role": "assistant", "content": row["demonstration"]}]
        rendered = tokenizer.apply_chat_template(messages, tools=row.get("tools"), tokenize=False)
        assert tokenizer.decode(ids) + "\n" == rendered
        assert [*ids, *tokenizer.encode("\n")] == tokenizer.apply_chat_template(messages, tools=row.get("tools"), return_dict=False)
        spoken = [token for token, counts in zip(ids, mask) if counts]
        assert tokenizer.decode(spoken) == row["demonstration"] + "<|im_end|>"
        assert ids[: len(ids) - len(spoken)] == encode_prompt(tokenizer, row)


def test_thinking_switched_off_closes_the_block(tokenizer, rows):
    prompt = render_prompt(tokenizer, rows[0], enable_thinking=False)
    assert prompt == tokenizer.decode(encode_prompt(tokenizer, rows[0])) + "<think></think>"
    assert prompt.endswith("<|im_start|>assistant\n<think></think>")


def test_a_whole_conversation_with_tools(tokenizer):
    conversation = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Pay Ada 3"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "pay", "arguments": {"to": "Ädä \"A\"", "amount": 3}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "assistant", "content": "Paid.", "reasoning_content": "It worked."}, {"role": "user", "content": "Thanks"},
    ]
    text = tokenizer.apply_chat_template(conversation, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.\nTools: pay(to: string, amount: integer)<|im_end|>\n"
        "<|im_start|>user\nPay Ada 3<|im_end|>\n"
        '<|im_start|>assistant\n<think></think><tool_call>{"name": "pay", "arguments": {"to": "Ädä \\"A\\"", "amount": 3}}</tool_call>'
        "<|im_end|>\n<|im_start|>tool\ndone<|im_end|>\n"
        "<|im_start|>assistant\n<think>It worked.</think>Paid.<|im_end|>\n"
        "<|im_start|>user\nThanks<|im_end|>\n<|im_start|>assistant\n")


def test_a_rendered_tool_call_is_what_the_demonstrations_say(tokenizer, rows):
    row = next(row for row in rows if row["family"] == "tool" and row["mode"] == "good")
    call = {key: row["verifier"][key] for key in ("name", "arguments")}
    said = [*row["messages"], {"role": "assistant", "content": row["demonstration"]}]
    for arguments in (call["arguments"], json.dumps(call["arguments"])):
        called = [*row["messages"], {"role": "assistant", "content": "", "tool_calls": [{"function": {**call, "arguments": arguments}}]}]
        render = [tokenizer.apply_chat_template(messages, tools=row["tools"], tokenize=False) for messages in (said, called)]
        assert render[0] == render[1]


def test_a_conversation_without_system_or_tools_has_no_system_turn(tokenizer):
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_errors_are_one_line(tmp_path, directory):
    with pytest.raises(UserError, match="a vocabulary of 200 is too small"):
        train_tokenizer(["a"], 200)
    with pytest.raises(UserError, match=r"the text gives only \d+ of 5000 tokens"):
        train_tokenizer(["a b c"], 5000)
    with pytest.raises(UserError, match=r"no tokenizer\.json - run the stage"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="unreadable tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text((directory / "tokenizer.json").read_text())
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(tmp_path)
