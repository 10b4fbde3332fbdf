"""Reinforcement learning on conversations with environments: whose tokens carry a loss, what is kept, and a kill in between."""

import json
import shutil
from dataclasses import replace
from random import Random
from threading import Barrier

import pytest

from components.rl.params import EnvironmentServer
from components.rl.prompts import environment_rows, file_rows, read_prompts
from components.rl.rollouts import batches, read_draw
from components.rl.stage import main
from components.rl.talks import begin, begin_all, hear_all
from stagecraft.contract.errors import UserError
from stagecraft.data.chat import render_prompt
from stagecraft.data.conversations import encode_conversation
from stagecraft.data.tasks import FAMILIES, draw_splits, write_rows
from stagecraft.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from stagecraft.engine import parallel
from stagecraft.environments.library import ENVIRONMENTS
from stagecraft.environments.written import write_call
from stagecraft.inference.engine import Completion
from tests.environments.test_http import ours, small
from tests.rl.conftest import copy
from tests.rl.test_prompts import PARAMS
from tests.rl.test_staleness import curve
from tests.stages.commands import kill_when, run

ROOM = 6000
PLAYED = ("warehouse", "guess", "sql", "json_schema", "tool_call", "needle")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    rows = [row for name in PLAYED for row in environment_rows(name, 5, "0")]
    save_tokenizer(train_tokenizer([json.dumps(row["messages"]) for row in rows], 400), directory, 512)
    return load_tokenizer(directory)


def test_rows_of_a_later_stage_that_are_not_here_are_told_of_before_any_work(tmp_path):
    served = {"mine": {"url": "http://127.0.0.1:9", "rows": str(tmp_path / "mine.jsonl"), "turns": 1}}
    stages = {"first": {}, "second": {"environments": {"mine": 1.0}, "environment_servers": served}}
    with pytest.raises(UserError, match=r"^rl.environment_servers.mine.rows: .*mine.jsonl: no such file of rows - name a JSONL file"):
        main(replace(PARAMS, environments={}, environment_servers={}, stages=stages), {}, {}, None)


def said(tokenizer, text, finished=True):
    """What an engine would give back for a text."""
    ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * finished
    return Completion(ids, [-0.5] * len(ids), finished)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.skipif(
    name == "sql" and shutil.which("bwrap") is None, reason="bubblewrap is not installed")) for name in PLAYED])
def test_a_conversation_has_the_tokens_and_the_mask_that_fine_tuning_gives_it(tokenizer, name):
    row = environment_rows(name, 3, "1")[2]
    talk, texts = begin(row, tokenizer, ROOM, 0, {}), ENVIRONMENTS[name].reference(row["drawn"])
    went_on = [talk.hear(said(tokenizer, f"<think>so</think>{text}")) for text in texts]
    assert went_on == [True] * (len(texts) - 1) + [False]
    sample = talk.sample
    ids, mask = encode_conversation(tokenizer, {"messages": sample.messages, "tools": row["tools"]})
    assert sample.prompt + sample.tokens == ids and [0] * len(sample.prompt) + sample.mask == mask
    assert [bool(value) for value in sample.logprobs] == [bool(own) for own in sample.mask]
    assert sample.reward == 1 and sample.finished and not sample.malformed
    assert tokenizer.decode(sample.tokens) == sample.text


def test_only_the_policys_own_tokens_carry_loss_and_advantage(tokenizer):
    parallel.initialize(seed=0)
    row = environment_rows("guess", 1, "2")[0]
    talk = begin(row, tokenizer, ROOM, 0, {})
    for text in ENVIRONMENTS["guess"].reference(row["drawn"]):
        talk.hear(said(tokenizer, text))
    sample = talk.sample
    sample.advantage = 2.0
    (batch,) = batches([sample], PARAMS)
    own = [0] * (len(sample.prompt) - 1) + sample.mask
    assert batch.loss_mask[0].tolist() == own and batch.extra.advantages.tolist() == [2.0 * each for each in own]
    assert batch.labels[0].tolist() == (sample.prompt + sample.tokens)[1:]
    parallel.shutdown()


def test_what_is_cut_off_has_no_reward_and_what_is_malformed_is_marked(tokenizer):
    row = environment_rows("warehouse", 1, "3")[0]
    cut = begin(row, tokenizer, ROOM, 0, {})
    assert not cut.hear(said(tokenizer, "<think>", finished=False))
    assert (cut.sample.reward, cut.sample.finished, cut.sample.parts) == (0, False, {"finished": 0.0})
    look = ENVIRONMENTS["warehouse"].reference(row["drawn"])[0]
    narrow = begin(row, tokenizer, len(cut.sample.prompt) + 60, 0, {})
    assert not narrow.hear(said(tokenizer, look)) and not narrow.sample.finished
    assert [message["role"] for message in narrow.sample.messages] == ["user", "assistant", "tool"]
    for text in ("</think>", '<tool_call>{"name": "fly", "arguments": {}}</tool_call>'):
        talk = begin(row, tokenizer, ROOM, 0, {})
        if talk.hear(said(tokenizer, text)):
            talk.hear(said(tokenizer, "7"))
        assert talk.sample.malformed and talk.sample.reward == 0


def test_a_resource_server_plays_the_same_conversation(tokenizer, monkeypatch):
    monkeypatch.setattr("stagecraft.environments.remote.BACKOFF", 0.01)
    row = environment_rows("warehouse", 1, "4")[0]
    texts = [write_call("fly"), *ENVIRONMENTS["warehouse"].reference(row["drawn"])]
    with ours("warehouse") as url:
        server = EnvironmentServer(url=url, rows="", turns=ENVIRONMENTS["warehouse"].turns)
        talks = [begin(row, tokenizer, ROOM, 0, servers) for servers in ({}, {"warehouse": server})]
        for text in texts:
            assert len({talk.hear(said(tokenizer, text)) for talk in talks}) == 1
    here, there = (talk.sample for talk in talks)
    assert here == there and here.reward == 1 and here.malformed
    with pytest.raises(UserError, match=r"no answer.*start the resource server"):
        begin(row, tokenizer, ROOM, 0, {"warehouse": server})


def test_what_a_tool_cannot_do_is_not_malformed(tokenizer):
    row = environment_rows("warehouse", 1, "4")[0]
    texts = [write_call("look", room="moon"), *ENVIRONMENTS["warehouse"].reference(row["drawn"])]
    with ours("warehouse") as url:
        server = EnvironmentServer(url=url, rows="", turns=ENVIRONMENTS["warehouse"].turns)
        for servers in ({}, {"warehouse": server}):
            talk = begin(row, tokenizer, ROOM, 0, servers)
            for text in texts:
                talk.hear(said(tokenizer, text))
            assert '{"error"' in talk.sample.text and talk.sample.reward == 1 and not talk.sample.malformed


def test_servers_are_asked_side_by_side_and_the_order_stays(tokenizer):
    """A server that answers nobody before four have asked."""
    four = Barrier(4)
    rows = [{**row, "id": str(number)} for number, row in enumerate(environment_rows("warehouse", 4, "5"))]
    with small({"seed_session": [(200, "{}")], "verify": [(200, '{"reward": 1}')]}, before=lambda: four.wait(20)) as (url, _):
        server = EnvironmentServer(url=url, rows="", turns=1)
        talks = begin_all(rows, tokenizer, ROOM, 0, {"warehouse": server})
        assert [talk.sample.id for talk in talks] == ["0", "1", "2", "3"]
        assert hear_all(talks, [said(tokenizer, f"it is {number}") for number in range(4)]) == [False] * 4
    assert [(talk.sample.text, talk.sample.reward) for talk in talks] == [(f"it is {number}<|im_end|>", 1) for number in range(4)]


def test_rows_of_an_environment_that_is_not_ours_are_played_on_its_server(tokenizer, tmp_path):
    """Its name is known to the server alone; a row's input may hold turns that were taken before."""
    drawn = [ENVIRONMENTS["warehouse"].draw(Random(seed)) for seed in range(6)]
    taken = [{"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
             {"type": "function_call_output", "call_id": "1", "output": "nothing"}]
    drawn[0]["responses_create_params"]["input"] += taken
    path = tmp_path / "theirs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in drawn) + "\n\n")
    with ours("warehouse") as url:
        server = EnvironmentServer(url=url, rows=str(path), turns=ENVIRONMENTS["warehouse"].turns)
        params = replace(PARAMS, mixture=dict.fromkeys(FAMILIES, 0.0), environments={"theirs": 1.0}, max_prompt_tokens=ROOM // 2,
                         pack_tokens=ROOM, environment_servers={"theirs": server})
        write_rows(tmp_path / "rl.jsonl", draw_splits({"sft": 6, "rl": 6, "heldout": 6}, dict.fromkeys(FAMILIES, 0.0), 0)["rl"])
        rows = read_prompts(tmp_path / "rl.jsonl", tokenizer, params)
        assert [row["drawn"] for row in rows] == drawn
        assert [row["id"] for row in rows] == [f"environment/theirs-{number:06d}" for number in range(1, 7)]
        assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant", "tool"]
        talk = begin(rows[1], tokenizer, ROOM, 0, params.environment_servers)
        for text in ENVIRONMENTS["warehouse"].reference(drawn[1]):
            talk.hear(said(tokenizer, text))
        assert talk.sample.reward == 1 and talk.sample.family == "theirs"
        again = begin(rows[0], tokenizer, ROOM, 0, params.environment_servers)
        assert "nothing" in tokenizer.decode(again.sample.prompt)
    assert [row["drawn"] for row in file_rows(path, "theirs", 3, "0")] != drawn[:3]  # not the first ones only
    for line, message in (("[1]", "TypeError"), ("{", "JSONDecodeError"), ('{"responses_create_params": {"input": []}}', "input is empty"),
                          ('{"responses_create_params": {"input": [{"role": "tool", "content": "x"}]}}', "a message of 'tool'"),
                          ('{"responses_create_params": {"input": "cut: \\ud83d"}}', "surrogates not allowed"),
                          ("[" * 9000, "RecursionError")):
        path.write_text(f"{json.dumps(drawn[1])}\n{line}\n")
        with pytest.raises(UserError, match=rf"{path}:2: no row of NeMo Gym: .*{message}.* - give it responses_create_params"):
            file_rows(path, "theirs", 2, "0")
    path.write_text(json.dumps({"responses_create_params": {"input": "one\u2028two\x85three"}}, ensure_ascii=False) + "\r\n", "utf-8")
    assert file_rows(path, "theirs", 2, "0")[0]["messages"][0]["content"] == "one\u2028two\x85three"
    with pytest.raises(UserError, match=r"cannot read rows: .* - correct rl.environment_servers.theirs.rows"):
        file_rows(tmp_path / "absent", "theirs", 1, "0")


def test_the_thinking_of_earlier_turns_stands_before_their_text_and_calls(tokenizer, tmp_path):
    """As in the rows of NeMo Gym's single_step_tool_use_with_argument_comparison."""
    def thinks(*texts):
        return {"type": "reasoning", "id": "1", "encrypted_content": None, "summary": [{"type": "summary_text", "text": t} for t in texts]}

    def calls(id_):
        return {"type": "function_call", "call_id": id_, "name": "look", "arguments": "{}"}

    def output(id_):
        return {"type": "function_call_output", "call_id": id_, "output": "nothing"}

    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well.", "annotations": []}]}
    asked = [{"role": "user", "content": "?"}, thinks("first ", "of all"), said, {"role": "user", "content": "!"},
             thinks("a"), thinks("b"), calls("1"), output("1"), thinks("c"), calls("2"), output("2")]
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps({"responses_create_params": {"input": asked}}))
    (row,) = file_rows(path, "theirs", 1, "0")
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user", "assistant", "tool", "assistant", "tool"]
    shown = render_prompt(tokenizer, row)
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    for turn in ("<think>first of all</think>Well.", f"<think>ab</think>{call}", f"<think>c</think>{call}"):
        assert f"<|im_start|>assistant\n{turn}<|im_end|>" in shown


def test_equal_seeds_draw_equal_rows_and_an_unknown_environment_is_one_line():
    assert environment_rows("sql", 4, "0") == environment_rows("sql", 4, "0") != environment_rows("sql", 4, "1")
    with pytest.raises(UserError, match="unknown environment 'chess'"):
        environment_rows("chess", 1, "0")


@pytest.mark.slow
def test_a_kill_amid_conversations_changes_no_bit(player, tmp_path):
    """Two environments and the task families together, one step stale; killed with a step drawn, and again while the MTP block heals."""
    changes = {"environments": {"warehouse": 1.0, "guess": 1.0}, "environment_prompts": 12, "max_prompt_tokens": 420, "max_new_tokens": 90,
               "prompts_per_step": 6, "checkpoint_every": 2,
               "healing": {"steps": 6, "lr": 1.0e-3, "depths": 2, "rollouts": 2, "heldout": 12}}
    straight = copy(player, tmp_path / "straight", **changes)
    metrics = run("rl", straight)
    assert [row["staleness"] for row in curve(straight)] == [0, 1, 1, 1] and curve(straight)[0]["mismatch"] < 1e-4
    episodes = [json.loads(line) for line in (straight / "artifacts/aligned/episodes.jsonl").read_text().splitlines()]
    assert {episode["family"] for episode in episodes} == {"warehouse", "guess"}
    roles = [[message["role"] for message in episode["messages"]] for episode in episodes]
    assert any("tool" in each for each in roles) and any(each.count("assistant") > 2 for each in roles)
    assert any(name.startswith("part_guess_") for row in curve(straight) for name in row)
    assert metrics["accepted_length_healed"] >= 1

    broken = copy(player, tmp_path / "broken", **changes)
    kill_when("rl", broken, "rl/*/stages/rlvr/rollouts/00000001.jsonl")
    draw = read_draw(next((broken / ".work/rl").glob("*/stages/*/rollouts/00000001.jsonl")))
    tokenizer = load_tokenizer(broken / "artifacts/corpus/tokenizer")
    for sample in draw.samples:  # what was said is what is trained on
        turns = [message["content"] for message in sample.messages if message["role"] == "assistant"] or [sample.text]
        own = tokenizer.decode([token for token, mine in zip(sample.tokens, sample.mask) if mine]).split("<|im_end|>")
        assert own == turns + [""] * (own[-1] == "")
    kill_when("rl", broken, "rl/*/healing_training/checkpoints/step-*")
    run("rl", broken)
    for name in ("model.safetensors", "rollouts.jsonl", "episodes.jsonl"):
        assert (broken / "artifacts/aligned" / name).read_bytes() == (straight / "artifacts/aligned" / name).read_bytes(), name
