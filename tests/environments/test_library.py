"""Every built-in environment: equal seeds draw equal rows, the reference gets the full reward, near misses do not."""

import json
import re
import shutil
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.environments.episode import converse, script
from stagecraft.environments.library import ENVIRONMENTS, environment
from stagecraft.environments.library.software import MODULES
from stagecraft.environments.library.sql import ask
from stagecraft.environments.written import write_call

IN_SANDBOX = {"code", "software", "sql"}
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
@pytest.mark.parametrize("name, seed", [("code", 1), ("code", 2), ("software", 1), ("software", 4), ("sql", 1), ("sql", 2)])
def test_the_same_where_programs_are_run(name, seed):
    check(name, seed)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("said", ["print('so')", "print('so', end='')", "import sys; print('so', file=sys.stderr)",
                                  "import sys; print('so', end='', file=sys.stderr)"])
def test_a_right_program_may_print(said):
    code, software = environment("code"), environment("software")
    row = code.draw(Random(1))
    (right,) = code.reference(row)
    assert played("code", row, [right.replace("    return", f"    {said}\n    return")]).reward.score == 1
    row = software.draw(Random(1))
    module = MODULES[row["broken"]]
    mended = [write_call("replace", path=f"{row['broken']}.py", old=module.bug, new=f"{said}\n    {module.right}"), write_call("run_test")]
    episode = played("software", row, [*mended, "done"])
    assert episode.reward.score == 1 and '"passed"' in [item.get("output") for item in episode.output]


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


def test_calls_that_no_tool_takes_are_counted_and_what_a_tool_cannot_do_is_an_answer():
    env = ENVIRONMENTS["warehouse"]
    row = env.draw(Random(0))
    bad = ['<tool_call>{"name": "look", "arguments": {}}</tool_call>', '<tool_call>{"name": "look", "arguments": {"room": 3}}</tool_call>',
           '<tool_call>{"name": "fly", "arguments": {}}</tool_call>',
           '<tool_call>{"name": "look", "arguments": {"room": "moon"}}</tool_call>']
    episode = played("warehouse", row, ["".join(bad), *env.reference(row)])
    assert episode.invalid_calls == 3 and episode.reward.score == 1 and episode.reward.parts["valid_calls"] == 0
    assert all("error" in json.loads(item["output"]) for item in episode.output[4:8])


def test_turns_are_bounded():
    row = ENVIRONMENTS["warehouse"].draw(Random(0))
    episode = played("warehouse", row, ['<tool_call>{"name": "look", "arguments": {"room": "hall"}}</tool_call>'] * 20)
    assert episode.cut and episode.turns == 8 and episode.reward.score == 0


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"
DOUBLED = "".join(f", a{i} AS (SELECT * FROM a{i - 1} UNION ALL SELECT * FROM a{i - 1})" for i in range(1, 30))


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("sql, error", [
    *((sql, "not authorized|authorization denied") for sql in (
        "DELETE FROM people", "INSERT INTO people VALUES (99, 'x', 'y', 1)", "PRAGMA query_only = 0", "ATTACH DATABASE '/tmp/x' AS y",
        "CREATE TABLE x (y)", "VACUUM INTO '/tmp/stagecraft-escape'", "SELECT load_extension('x')")),
    ("SELECT zeroblob(1000000000)", "too big"), ("SELECT x'00'", "blob"), ("SELECT 1; SELECT 2", "one statement"),
    (f"{ENDLESS} SELECT count(*) FROM n", "interrupted"), (f"{ENDLESS} SELECT i FROM n", "more than 1000 rows"),
    (f"{ENDLESS} SELECT {', '.join(['hex(zeroblob(45000))'] * 60)} FROM n", "or 100000 characters"),
    (f"SELECT {', '.join('1' * 65)}", "too many columns"), ("SELECT 'it''s", "unrecognized token"),
    (f"WITH a0 AS (SELECT 1){DOUBLED} SELECT * FROM a29", "takes too much|too_slow")])
def test_a_query_can_only_read_and_neither_for_long_nor_much(sql, error):
    """The last one is answered by SQLite's compiler, which asks for memory without end before there is a step to interrupt."""
    (found,), (whole,) = ask([1], sql), ask([1], "SELECT * FROM people")
    assert re.search(error, found["error"]) and len(whole["rows"]) >= 6


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_a_query_whose_rows_no_json_can_hold_is_answered_with_an_error():
    row = ENVIRONMENTS["sql"].draw(Random(0))
    episode = played("sql", row, [write_call("query", sql="SELECT x'00'"), row["query"]])
    assert "blob" in json.loads(episode.output[1]["output"])["error"] and episode.reward.score == 1
    assert played("sql", row, ["SELECT x'00'"]).reward.parts["runs"] == 0


def test_a_needle_can_be_further_away_than_a_small_models_context():
    drawn = [ENVIRONMENTS["needle"].draw(Random(seed))["responses_create_params"] for seed in range(12)]
    lengths = [len(asked["input"][0]["content"].split()) for asked in drawn]
    assert max(lengths) > 1900 and min(lengths) < 130
