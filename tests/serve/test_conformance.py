"""What clients of the OpenAI API rely on, asked by OpenAI's own client of one real server; its model is a parrot, so that what it
thinks, says and calls is known beforehand."""

import asyncio
import json
import time
import urllib.request
from typing import Literal

import openai
import pytest
import requests
import torch
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field
from tokenizers import Tokenizer
from transformers import NemotronHForCausalLM

from components.serve.checks import check_streaming
from stagecraft.data.modes import LOW_EFFORT
from stagecraft.data.tokenizer import CHAT_TEMPLATE
from tests.checkpoints import tiny_tokenizer
from tests.serve.speech import CALLS, LINES, PAY, PAYMENT, SAID, SHORT, SUM, THOUGHT

MODEL = "stagecraft"
GREEDY = {"model": MODEL, "temperature": 0.0, "max_tokens": 100}
NO_THINKING = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
STREAMS = 64


@pytest.fixture(scope="module")
def client(parroting):
    with OpenAI(base_url=f"{parroting.url}/v1", api_key="none", max_retries=0, timeout=120) as opened:
        yield opened


def gather(stream):
    """The fields of a streamed message, and its number of pieces."""
    parts, calls, pieces, ends = {"reasoning": "", "content": ""}, {}, 0, []
    for chunk in stream:
        for choice in chunk.choices:
            pieces += 1
            for part in parts:
                parts[part] += getattr(choice.delta, part, None) or ""
            for call in choice.delta.tool_calls or []:
                known = calls.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
                known["id"] += call.id or ""
                known["name"] += call.function.name or ""
                known["arguments"] += call.function.arguments or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
    return parts, [calls[index] for index in sorted(calls)], pieces, ends


def encode(row, **options):
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(row["messages"], chat_template=CHAT_TEMPLATE.read_text(), add_generation_prompt=True,
                                         tokenize=False, **options)
    return tokenizer.encode(text, add_special_tokens=False)


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == [MODEL]


def test_thinking_and_answer_come_in_fields_of_their_own(client):
    (choice,) = client.chat.completions.create(**GREEDY, **SUM).choices
    assert (choice.message.reasoning, choice.message.content, choice.finish_reason) == (THOUGHT, SAID, "stop")
    parts, calls, pieces, ends = gather(client.chat.completions.create(**GREEDY, **SUM, stream=True))
    assert parts == {"reasoning": THOUGHT, "content": SAID} and not calls and pieces > 3 and ends == ["stop"]


@pytest.mark.parametrize("asked, said", [(SUM, SAID), (SHORT, "2")])
def test_the_stages_check_of_streaming_takes_an_answer_of_any_length(client, parroting, asked, said):
    tokenizer = Tokenizer.from_file(str(parroting.model / "tokenizer.json"))
    found = check_streaming(client, MODEL, asked, 24, tokenizer, parroting.settings.draft_tokens)
    assert found["content"] == said and (found["pieces"] == 1 or asked is SUM)


def test_thinking_can_be_switched_off(client):
    (choice,) = client.chat.completions.create(**GREEDY, **SUM, **NO_THINKING).choices
    assert choice.message.content == "Four." and not choice.message.reasoning
    parts, _, _, _ = gather(client.chat.completions.create(**GREEDY, **SUM, **NO_THINKING, stream=True))
    assert parts == {"reasoning": "", "content": "Four."}


def test_a_budget_ends_the_thinking_and_the_answer_comes(client, parroting):
    """What follows a thought that is cut is what the model says after just that thought."""
    tokenizer, model = tiny_tokenizer(), NemotronHForCausalLM.from_pretrained(parroting.model).eval()
    prompt = encode(SUM)
    thought = tokenizer.encode(THOUGHT, add_special_tokens=False)
    for budget in (0, 1, len(thought) - 1, len(thought), len(thought) + 5):
        asked = {**GREEDY, **SUM, "max_tokens": 24, "extra_body": {"thinking_token_budget": budget, "return_token_ids": True}}
        (choice,) = client.chat.completions.create(**asked).choices
        cut = tokenizer.encode(f"<think>{tokenizer.decode(thought[:budget])}</think>", add_special_tokens=False)
        ids = model.generate(torch.tensor([prompt + cut]), do_sample=False, max_new_tokens=24 - len(cut), eos_token_id=4)
        assert choice.token_ids == ids[0, len(prompt):].tolist()
        assert (choice.message.reasoning or "") == tokenizer.decode(thought[:budget]).rstrip()
        if budget >= len(thought):
            assert choice.message.content == SAID
        parts, _, _, _ = gather(client.chat.completions.create(**asked, stream=True))
        assert parts["reasoning"].rstrip() == (choice.message.reasoning or "")


def test_low_effort_is_asked_for_in_the_system_turn(client):
    def tokens(**changes):
        return client.chat.completions.create(**{**GREEDY, "max_tokens": 1}, **changes).usage.prompt_tokens

    said = tokens(messages=[{"role": "system", "content": LOW_EFFORT}, *SUM["messages"]])
    assert tokens(**SUM, reasoning_effort="low") == said > tokens(**SUM, reasoning_effort="high") == tokens(**SUM)
    assert tokens(**SUM, extra_body={"chat_template_kwargs": {"low_effort": True}}) == said
    assert tokens(**SUM, reasoning_effort="none") == tokens(**SUM, **NO_THINKING) != tokens(**SUM)


def test_tool_calls_come_as_tool_calls_after_thinking(client):
    (choice,) = client.chat.completions.create(**GREEDY, **PAYMENT).choices
    assert choice.message.reasoning == "Both." and not choice.message.content and choice.finish_reason == "tool_calls"
    made = choice.message.tool_calls
    assert [(call.function.name, json.loads(call.function.arguments)) for call in made] == [("pay", call) for call in CALLS]
    assert len({call.id for call in made}) == 2
    parts, calls, _, ends = gather(client.chat.completions.create(**GREEDY, **PAYMENT, stream=True))
    assert parts == {"reasoning": "Both.", "content": ""} and ends == ["tool_calls"]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [("pay", call) for call in CALLS]
    assert len({call["id"] for call in calls}) == 2


def test_a_tool_that_must_be_called_is_called(client):
    strict = {**PAY, "function": {**PAY["function"], "strict": True}}
    for choice in ("required", {"type": "function", "function": {"name": "pay"}}):
        message = client.chat.completions.create(**GREEDY, messages=[{"role": "user", "content": "Hello"}], tools=[strict],
                                                 tool_choice=choice, **NO_THINKING).choices[0].message
        assert message.tool_calls
        for call in message.tool_calls:
            arguments = json.loads(call.function.arguments)
            assert call.function.name == "pay" and arguments["to"] in ("Ann", "Bob") and arguments["amount"] in range(1, 10)
    message = client.chat.completions.create(**GREEDY, **PAYMENT, tool_choice="none").choices[0].message
    assert not message.tool_calls


def test_results_of_tools_go_back_into_the_conversation(client):
    call = {"id": "1", "type": "function", "function": {"name": "pay", "arguments": json.dumps(CALLS[0])}}
    talk = [*PAYMENT["messages"], {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "paid"}]
    assert client.chat.completions.create(**{**GREEDY, "max_tokens": 4}, messages=talk, tools=[PAY]).usage.completion_tokens == 4


class Stay(BaseModel):
    city: Literal["Rome", "Oslo"]
    days: int = Field(ge=1, le=28)


def test_an_answer_in_a_schema(client):
    question = [{"role": "user", "content": "Where to?"}]
    answer = client.chat.completions.parse(**GREEDY, messages=question, response_format=Stay, **NO_THINKING)
    assert isinstance(answer.choices[0].message.parsed, Stay)
    form = {"type": "json_schema", "json_schema": {"name": "stay", "strict": True, "schema": Stay.model_json_schema()}}
    parts, _, pieces, ends = gather(client.chat.completions.create(**GREEDY, messages=question, response_format=form, **NO_THINKING,
                                                                   stream=True))
    assert Stay.model_validate_json(parts["content"]) == answer.choices[0].message.parsed and pieces > 2 and ends == ["stop"]


def test_logprobs_are_those_of_transformers(client, parroting):
    asked = {**GREEDY, **SUM, **NO_THINKING, "logprobs": True, "top_logprobs": 5}
    choice = client.chat.completions.create(**asked).choices[0]
    tokenizer = tiny_tokenizer()
    ids = encode(SUM, enable_thinking=False)
    answer = tokenizer.encode("Four.<|im_end|>", add_special_tokens=False)
    with torch.no_grad():
        model = NemotronHForCausalLM.from_pretrained(parroting.model).eval()
        expected = model(torch.tensor([ids + answer])).logits[0, len(ids) - 1:-1].log_softmax(-1)
    assert len(choice.logprobs.content) == len(answer)
    for position, row, token in zip(choice.logprobs.content, expected, answer):
        assert position.logprob == pytest.approx(row[token].item(), abs=1e-3)
        assert [top.logprob for top in position.top_logprobs] == pytest.approx(row.topk(5).values.tolist(), abs=1e-3)
    streamed = [position for chunk in client.chat.completions.create(**asked, stream=True) for each in chunk.choices if each.logprobs
                for position in each.logprobs.content]
    assert [position.token for position in streamed] == [position.token for position in choice.logprobs.content]
    for position, whole in zip(streamed, choice.logprobs.content):
        assert position.logprob == pytest.approx(whole.logprob, abs=1e-3)
        assert [top.token for top in position.top_logprobs] == [top.token for top in whole.top_logprobs]


def test_stop_ends_an_answer_and_is_no_part_of_it(client):
    (choice,) = client.chat.completions.create(**GREEDY, **SUM, stop=["hands"]).choices
    assert choice.message.content == "Four " and choice.finish_reason == "stop"
    parts, _, _, ends = gather(client.chat.completions.create(**GREEDY, **SUM, stop=["hands"], stream=True))
    assert parts == {"reasoning": THOUGHT, "content": "Four "} and ends == ["stop"]
    (choice,) = client.chat.completions.create(**{**GREEDY, "max_tokens": 3}, **SUM).choices
    assert choice.finish_reason == "length"


def test_n_answers_and_seeds(client):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "Tell"}], "temperature": 1.0, "max_tokens": 12, "n": 3,
             "extra_body": {"return_token_ids": True, "ignore_eos": True}}

    def answers(seed):
        choices = client.chat.completions.create(**asked, seed=seed).choices
        return [choice.token_ids for choice in sorted(choices, key=lambda choice: choice.index)]

    first = answers(1)
    assert len({tuple(ids) for ids in first}) == 3
    assert answers(1) == first != answers(2)
    streamed = [[], [], []]
    for chunk in client.chat.completions.create(**asked, seed=1, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += getattr(choice, "token_ids", None) or []
    assert streamed == first


def test_usage_counts_tokens(client, parroting):
    *_, last = client.chat.completions.create(**GREEDY, **SUM, stream=True, stream_options={"include_usage": True})
    tokenizer = Tokenizer.from_file(str(parroting.model / "tokenizer.json"))
    assert last.usage.completion_tokens == len(tokenizer.encode(LINES[0][2], add_special_tokens=False).ids) + 1  # <|im_end|>
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


@pytest.mark.parametrize(("changes", "status"), [
    ({"model": "another"}, 404), ({"messages": []}, 400), ({"messages": [{"role": "user", "content": "x " * 2000}]}, 400),
    ({"temperature": -1.0}, 400), ({"top_p": 2.0}, 400), ({"max_tokens": -1}, 400), ({"n": 0}, 400), ({"top_logprobs": 5000}, 400),
    ({"messages": "hello"}, 400),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}}, 400),
    ({"tools": [PAY], "tool_choice": {"type": "function", "function": {"name": "fly"}}}, 400),
])
def test_a_bad_request_is_the_clients_fault(client, changes, status):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{**GREEDY, **SUM, **({"logprobs": True} if "top_logprobs" in changes else {}), **changes})
    assert caught.value.status_code == status and caught.value.message
    assert client.chat.completions.create(**{**GREEDY, "max_tokens": 1}, **SUM).choices  # and the server goes on


def test_what_is_no_json_is_refused(parroting):
    for body in (b"{", b"\xff\xfe", b"[]"):
        request = urllib.request.Request(f"{parroting.url}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=60)
        assert 400 <= caught.value.code < 500


@pytest.mark.parametrize(("path", "body", "status"), [
    ("/invocations", {"model": MODEL, **SUM}, 404), ("/tokenize", {"model": MODEL, "prompt": "a"}, 404), ("/docs", None, 404),
    ("/ping", None, 200), ("/version", None, 200),
])
def test_nothing_asks_the_model_past_the_path_that_a_key_guards(parroting, path, body, status):
    assert requests.request("POST" if body else "GET", parroting.url + path, json=body, timeout=60).status_code == status


def gauge(parroting, name):
    with urllib.request.urlopen(f"{parroting.url}/metrics", timeout=30) as response:
        return sum(float(line.split()[-1]) for line in response.read().decode().splitlines() if line.startswith(f"vllm:{name}{{"))


def test_a_client_that_hangs_up_frees_its_place(client, parroting):
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "go on"}], "max_tokens": 340, "temperature": 0.0, "stream": True,
             "extra_body": {"ignore_eos": True}}
    before = gauge(parroting, "generation_tokens_total")
    streams = [client.chat.completions.create(**asked) for _ in range(4)]
    for stream in streams:
        next(iter(stream))
    assert gauge(parroting, "num_requests_running") > 0
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + 30
    while gauge(parroting, "num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gauge(parroting, "num_requests_running") == 0
    assert gauge(parroting, "generation_tokens_total") - before < 4 * 340  # it did not compute them to the end


def test_a_client_that_waits_no_longer_for_a_whole_answer_frees_its_places(client, parroting):
    before = gauge(parroting, "generation_tokens_total")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1.0).chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "go on"}], max_tokens=340, n=16, extra_body={"ignore_eos": True})
    deadline = time.monotonic() + 30
    while gauge(parroting, "num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert gauge(parroting, "num_requests_running") == 0
    assert gauge(parroting, "generation_tokens_total") - before < 16 * 340


def test_many_streams_at_once_none_lost_or_mixed_up(client, parroting):
    """More streams than fit a batch, each of tokens that the same prompt gives over the other route."""
    tokenizer = tiny_tokenizer()
    talks = [[{"role": "user", "content": f"Number {number}: say it {number * 7919 % 1009} times"}] for number in range(STREAMS)]
    prompts = [tokenizer.encode(f"<|im_start|>user\n{talk[0]['content']}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
               for talk in talks]
    length = {"max_tokens": 12, "temperature": 0.0, "extra_body": {"ignore_eos": True, "return_token_ids": True}}
    answers = sorted(client.completions.create(model=MODEL, prompt=prompts, **length).choices, key=lambda choice: choice.index)
    expected = [answer.token_ids for answer in answers]
    assert len({tuple(ids) for ids in expected}) > STREAMS // 2  # answers that could be told apart

    async def stream(asking, talk):
        came, names = [], set()
        async for chunk in await asking.chat.completions.create(model=MODEL, messages=talk, stream=True, **length):
            names.add(chunk.id)
            came += [token for choice in chunk.choices for token in getattr(choice, "token_ids", None) or ()]
        return came, names

    async def together():
        async with AsyncOpenAI(base_url=f"{parroting.url}/v1", api_key="none", max_retries=0, timeout=300) as asking:
            return await asyncio.gather(*(stream(asking, talk) for talk in talks))

    streamed = asyncio.run(together())
    assert [came for came, _ in streamed] == expected
    assert len(set().union(*(names for _, names in streamed))) == STREAMS
