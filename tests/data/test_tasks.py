"""Task families: good demonstrations verify, flawed ones do not, splits share no prompt, answers agree with an independent solver."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecraft.contract.errors import UserError
from stagecraft.data.tasks import FAMILIES, FLAWS, Task, assert_disjoint, divide_rows, draw_splits, prompt_key, read_rows, write_rows
from stagecraft.data.tasks.families import PROMPTS
from stagecraft.environments import split_thinking, verify

SHARES = dict.fromkeys(FAMILIES, 0.4)
SEPARATORS = {"commas": ",", "dashes": "-", "slashes": "/", "dots": ".", "pluses": "+"}
RIGHT_BUT_WEAK = {"arithmetic"}  # its flaw is the missing working


def row_of(family: str, seed: int):
    task = FAMILIES[family](Random(seed))
    return task, {"id": family, "family": family, "verifier": task.verifier}


def solve(family: str, prompt: str) -> str:
    """The right answer, read from the prompt's words alone."""
    if family == "arithmetic":
        return str(eval(prompt.removesuffix("=?")))
    head, _, rest = prompt.partition(": ")
    words = rest.split()
    if family == "reverse":
        return " ".join(words[::-1])
    if family == "sort":
        return " ".join(map(str, sorted(map(int, words))))
    if family == "lookup":
        table, key = rest.split(" Get ")
        return dict(pair.split("=") for pair in table.split())[key]
    if head.startswith("Join with"):
        return SEPARATORS[head.split()[-1]].join(words)
    if head.startswith("Write"):
        return " ".join([rest] * int(head.split()[1]))
    if head.startswith("First"):
        return " ".join(words[: int(head.split()[1])])
    return re.sub(r"\w+", r"\g<0> \g<0>", rest)


@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 2**32))
def test_good_demonstrations_verify_and_flawed_ones_do_not(family, seed):
    task, row = row_of(family, seed)
    assert verify(row, task.good).score == 1
    assert verify(row, task.flawed).score == (family in RIGHT_BUT_WEAK)
    assert task.good != task.flawed


@given(st.sampled_from(sorted(set(FAMILIES) - {"tool"})), st.integers(0, 2**32))
def test_answers_agree_with_an_independent_solver(family, seed):
    task, row = row_of(family, seed)
    assert verify(row, solve(family, task.prompt)).score == 1


@given(st.integers(0, 2**32))
def test_tool_requests_name_every_argument_and_the_schema_fits(seed):
    task, _ = row_of("tool", seed)
    schema = task.tools[0]["function"]["parameters"]
    assert schema["properties"].keys() == task.verifier["arguments"].keys() == set(schema["required"])
    for key, value in task.verifier["arguments"].items():
        assert str(value) in task.prompt
        assert schema["properties"][key]["type"] == {int: "integer", str: "string"}[type(value)]


@given(st.integers(0, 2**32))
def test_every_step_of_the_working_is_true(seed):
    task, _ = row_of("arithmetic", seed)
    working, answer = split_thinking(task.good)
    sides = [step.split("=") for step in working.split()]
    assert all(eval(left) == int(right) for left, right in sides)
    *carried, (_, last) = sides  # the last column keeps its carry
    assert int(last + "".join(right[-1] for _, right in reversed(carried))) == int(answer)


def test_splits_are_disjoint_sized_and_repeatable():
    counts = {"sft": 2000, "rl": 600, "heldout": 153}
    rows = draw_splits(counts, SHARES, seed=3)
    keys = [prompt_key(row) for members in rows.values() for row in members]
    assert len(keys) == len(set(keys)) == sum(counts.values())
    assert len({row["id"] for members in rows.values() for row in members}) == len(keys)
    assert {split: len(members) for split, members in rows.items()} == counts
    assert rows == draw_splits(counts, SHARES, seed=3) != draw_splits(counts, SHARES, seed=4)
    assert all("demonstration" not in row for row in rows["rl"] + rows["heldout"])
    per_family = [sum(row["family"] == family for row in rows["heldout"]) for family in FAMILIES]
    assert max(per_family) - min(per_family) <= 1


def test_the_heldout_set_outlives_changes_elsewhere():
    def heldout(counts, shares):
        return sorted((row["id"], row["messages"][0]["content"]) for row in draw_splits(counts, shares, 0)["heldout"]
                      if row["family"] == "sort")

    small = heldout({"sft": 70, "rl": 70, "heldout": 120}, SHARES)
    assert small == heldout({"sft": 700, "rl": 140, "heldout": 120}, {**SHARES, "sort": 0.9})
    assert small == heldout({"sft": 70, "rl": 70, "heldout": 40}, {"sort": 0.4, "lookup": 0.1})


def test_flawed_shares_are_met_and_marked():
    rows = draw_splits({"sft": 7000, "rl": 7, "heldout": 7}, {**SHARES, "sort": 0.0, "tool": 1.0}, 0)["sft"]
    for family, wanted in {**SHARES, "sort": 0.0, "tool": 1.0}.items():
        members = [row for row in rows if row["family"] == family]
        flawed = [row for row in members if row["mode"] == FLAWS[family][0]]
        assert len(flawed) / len(members) == pytest.approx(wanted, abs=0.06)  # 4 standard errors of 1000 draws
        assert all(verify(row, row["demonstration"]).score == (row["mode"] == "good" or family in RIGHT_BUT_WEAK) for row in members)


def test_weights_divide_the_sft_rows_and_nothing_else():
    rows = draw_splits({"sft": 650, "rl": 60, "heldout": 60}, SHARES, 0, {"arithmetic": 2.0, "tool": 0.5})
    counted = {split: Counter(row["family"] for row in members) for split, members in rows.items()}
    assert counted["sft"] == {**dict.fromkeys(FAMILIES, 100), "arithmetic": 200, "tool": 50}
    assert counted["rl"] == counted["heldout"] == dict.fromkeys(FAMILIES, 10)


def test_an_overlap_is_found():
    rows = draw_splits({"sft": 14, "rl": 14, "heldout": 14}, SHARES, 0)
    assert_disjoint(rows)
    rows["sft"].append({**rows["heldout"][0], "id": "copy"})
    with pytest.raises(UserError, match="copy occurs in heldout row"):
        assert_disjoint(rows)


def test_too_many_rows_and_unknown_families_are_told(monkeypatch):
    monkeypatch.setitem(FAMILIES, "coin", lambda random: Task(random.choice("HT"), {"kind": "text", "answer": "x"}, "x", "y"))
    with pytest.raises(UserError, match="'coin' has no fresh prompts left after 2"):
        draw_splits({"sft": 1, "rl": 1, "heldout": 1}, {"coin": 0.5}, 0)
    with pytest.raises(ValueError, match="unknown task family 'chess'; there are arithmetic"):
        draw_splits({"sft": 1, "rl": 1, "heldout": 1}, {"chess": 0.5}, 0)


def test_the_prompts_of_a_family_are_counted_right():
    """Drawn long enough, the family with the fewest gives nearly as many as its kinds have, and no more."""
    random = Random(0)
    found = {FAMILIES["tool"](random).prompt for _ in range(12 * PROMPTS["tool"])}
    assert 0.96 * PROMPTS["tool"] < len(found) <= PROMPTS["tool"]


def test_what_a_family_can_give_is_known_before_anything_is_drawn():
    most = 24214
    counts = {"sft": most - 20, "rl": 10, "heldout": 10}
    assert len(draw_splits(counts, {"tool": 0.0}, 0)["sft"]) == most - 20
    with pytest.raises(ValueError, match=r"^task family 'tool' can give 24214 rows, no prompt twice, and 24215 are asked of it; ask"):
        divide_rows({**counts, "rl": 11}, {"tool": 0.0}, {})
    with pytest.raises(ValueError, match="'arithmetic' can give 1102983 rows"):
        divide_rows({**counts, "sft": 2_000_000}, {"tool": 0.0, "arithmetic": 0.0}, {"tool": 0.001})


def test_rows_round_trip_and_broken_files_are_one_line(tmp_path):
    rows = [{"id": "a", "family": "f", "messages": [{"role": "user", "content": "Ä  \n"}], "verifier": {"kind": "text"}}]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows
    for text, message in (("{", ":1: not JSON"), ('{"id": 1}', ":1: task row without 'family'"), ("[]", "without 'id'")):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            read_rows(tmp_path / "bad.jsonl")
    with pytest.raises(UserError, match="cannot read task rows"):
        read_rows(tmp_path / "absent.jsonl")
