"""Reinforcement learning on conversations with environments: whose tokens carry a loss, what is kept, and a kill in between."""

import json
import os
import signal
import time

import pytest

from components.rl.prompts import environment_rows
from components.rl.rollouts import batches, read_draw
from components.rl.talks import begin
from stagecraft.contract.errors import UserError
from stagecraft.data.conversations import encode_conversation
from stagecraft.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from stagecraft.engine import parallel
from stagecraft.environments.items import write_call
from stagecraft.environments.library import ENVIRONMENTS
from stagecraft.inference.engine import Completion
from tests.environments.test_http import ours
from tests.rl.conftest import copy
from tests.rl.test_prompts import PARAMS
from tests.rl.test_staleness import curve
from tests.stages.test_training_stages import run, start

ROOM = 6000
PLAYED = ("warehouse", "guess", "sql", "json_schema", "tool_call", "needle")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    rows = [row for name in PLAYED for row in environment_rows(name, 5, "0")]
    save_tokenizer(train_tokenizer([json.dumps(row["messages"]) for row in rows], 400), directory, 512)
    return load_tokenizer(directory)


def said(tokenizer, text, finished=True):
    """What an engine would give back for a text."""
    ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * finished
    return Completion(ids, [-0.5] * len(ids), finished)


@pytest.mark.parametrize("name", PLAYED)
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


def test_a_resource_server_plays_the_same_conversation(tokenizer):
    row = environment_rows("warehouse", 1, "4")[0]
    texts = [write_call("fly"), *ENVIRONMENTS["warehouse"].reference(row["drawn"])]
    with ours("warehouse") as url:
        talks = [begin(row, tokenizer, ROOM, 0, servers) for servers in ({}, {"warehouse": url})]
        for text in texts:
            assert len({talk.hear(said(tokenizer, text)) for talk in talks}) == 1
    here, there = (talk.sample for talk in talks)
    assert here == there and here.reward == 1 and here.malformed
    with pytest.raises(UserError, match=r"no answer.*start the resource server"):
        begin(row, tokenizer, ROOM, 0, {"warehouse": url})


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
    kill_once(broken, "rollouts/00000001.jsonl")
    draw = read_draw(next((broken / ".work/rl").glob("*/rollouts/00000001.jsonl")))
    tokenizer = load_tokenizer(broken / "artifacts/corpus/tokenizer")
    for sample in draw.samples:  # what was said is what is trained on
        turns = [message["content"] for message in sample.messages if message["role"] == "assistant"] or [sample.text]
        own = tokenizer.decode([token for token, mine in zip(sample.tokens, sample.mask) if mine]).split("<|im_end|>")
        assert own == turns + [""] * (own[-1] == "")
    kill_once(broken, "healing/step-*")
    run("rl", broken)
    for name in ("model.safetensors", "rollouts.jsonl", "episodes.jsonl"):
        assert (broken / "artifacts/aligned" / name).read_bytes() == (straight / "artifacts/aligned" / name).read_bytes(), name


def kill_once(where, pattern):
    """SIGKILL to the whole group once a file of the work directory is there."""
    process = start("rl", where)
    deadline = time.monotonic() + 900
    while not list((where / ".work" / "rl").glob(f"*/{pattern}")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
