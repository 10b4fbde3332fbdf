"""Every built-in environment: equal seeds draw equal rows, the reference gets the full reward, near misses do not."""

import json
import shutil
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.environments.episode import converse, script
from stagecraft.environments.library import ENVIRONMENTS, environment

IN_SANDBOX = {"code", "software"}
NAMES = [pytest.param(name, marks=pytest.mark.skipif(name in IN_SANDBOX and shutil.which("bwrap") is None,
                                                     reason="bubblewrap is not installed")) for name in ENVIRONMENTS]


def played(name, row, texts):
    return converse(ENVIRONMENTS[name], row, script(texts), ENVIRONMENTS[name].turns)


def check(name, seed):
    env = environment(name)
    row = env.draw(Random(seed))
    assert row == env.draw(Random(seed)) and row["environment"] == name
    assert json.loads(json.dumps(row)) == json.loads(json.dumps(env.draw(Random(seed))))
    row = json.loads(json.dumps(row))  # as it comes from a file
    episode = played(name, row, env.reference(row))
    assert episode.reward.score == 1, (row, episode)
    assert episode.turns <= env.turns and not episode.malformed and not episode.invalid_calls
    assert episode.reward.parts["correct"] == 1 and all(0 <= part <= 1 for part in episode.reward.parts.values())
    for texts in env.near_misses(row):
        assert played(name, row, texts).reward.score < 1, (row, texts)


@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name not in IN_SANDBOX])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(seed=st.integers(0, 2**32))
def test_references_score_one_and_near_misses_do_not(name, seed):
    check(name, seed)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("name, seed", [("code", 1), ("code", 2), ("software", 1), ("software", 4)])
def test_the_same_where_programs_are_run(name, seed):
    check(name, seed)


@pytest.mark.parametrize("name", sorted(IN_SANDBOX))
def test_without_a_sandbox_nothing_runs_and_nothing_scores(name, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    row = ENVIRONMENTS[name].draw(Random(0))
    assert played(name, row, ENVIRONMENTS[name].reference(row)).reward.score == 0


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_malformed_thinking_and_calls_end_a_conversation_with_nothing(name):
    env = ENVIRONMENTS[name]
    row = env.draw(Random(3))
    good = env.reference(row)
    for text in ("<think>", "</think> a", "<think>a</think><think>b</think>", "<tool_call>{</tool_call>", "<tool_call>", "x</tool_call>",
                 '<tool_call>{"name": "look", "name": "carry", "arguments": {}}</tool_call>',
                 '<tool_call>{"name": 1, "arguments": {}}</tool_call>'):
        episode = played(name, row, [text, *good])
        assert episode.malformed and episode.reward.score == 0 and episode.turns == 1
    thinking = [f"<think>{number}</think>{text}" for number, text in enumerate(good)]
    if name not in IN_SANDBOX:
        assert played(name, row, thinking).reward.score == 1


def test_an_unknown_environment_is_one_line():
    with pytest.raises(UserError, match="unknown environment 'chess'"):
        environment("chess")


def test_calls_that_a_tool_does_not_take_are_answered_and_counted():
    env = ENVIRONMENTS["warehouse"]
    row = env.draw(Random(0))
    bad = ['<tool_call>{"name": "look", "arguments": {}}</tool_call>', '<tool_call>{"name": "look", "arguments": {"room": 3}}</tool_call>',
           '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
           '<tool_call>{"name": "look", "arguments": {"room": "moon"}}</tool_call>']
    episode = played("warehouse", row, ["".join(bad), *env.reference(row)])
    assert episode.invalid_calls == 4 and episode.reward.score == 1 and episode.reward.parts["valid_calls"] == 0
    assert all("error" in json.loads(item["output"]) for item in episode.output[4:8])


def test_turns_are_bounded():
    row = ENVIRONMENTS["warehouse"].draw(Random(0))
    episode = played("warehouse", row, ['<tool_call>{"name": "look", "arguments": {"room": "hall"}}</tool_call>'] * 20)
    assert episode.cut and episode.turns == 8 and episode.reward.score == 0


@pytest.mark.parametrize("sql", [
    "DELETE FROM people", "INSERT INTO people VALUES (99, 'x', 'y', 1)", "PRAGMA query_only = 0", "ATTACH DATABASE '/tmp/x' AS y",
    "SELECT load_extension('x')", "CREATE TABLE x (y)", "SELECT zeroblob(1000000000)", "VACUUM INTO '/tmp/stagecraft-escape'",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"])
def test_a_query_can_only_read_and_not_for_long(sql):
    from stagecraft.environments.library.sql import database, select

    with database(1) as connection:
        with pytest.raises(ValueError):
            select(connection, sql)
        assert len(select(connection, "SELECT * FROM people")) >= 6


def test_a_needle_can_be_further_away_than_a_small_models_context():
    drawn = [ENVIRONMENTS["needle"].draw(Random(seed))["responses_create_params"] for seed in range(12)]
    lengths = [len(asked["input"][0]["content"].split()) for asked in drawn]
    assert max(lengths) > 1900 and min(lengths) < 130
