"""Which prompts are asked: the mixture of families, the curriculum, and every prompt in its turn."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.rl.generator import Generator
from components.rl.params import Curriculum, Params
from components.rl.prompts import by_difficulty, pick, read_prompts
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load
from stagecraft.data.tasks import FAMILIES, draw_splits, write_rows
from stagecraft.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

PARAMS = load(Params, "rl", Path(__file__).parents[2] / "params.yaml")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    rows = draw_splits({"sft": 6, "rl": 120, "heldout": 6}, dict.fromkeys(FAMILIES, 0.4), 0)["rl"]
    write_rows(directory / "rl.jsonl", rows)
    save_tokenizer(train_tokenizer([row["messages"][0]["content"] for row in rows], 400), directory / "tokenizer", 512)
    return directory / "rl.jsonl", load_tokenizer(directory / "tokenizer")


def families(rows):
    return Counter(row["family"] for row in rows)


def test_a_mixture_gives_each_family_its_weight(corpus):
    params = replace(PARAMS, max_prompt_tokens=500)
    assert families(read_prompts(*corpus, params)) == dict.fromkeys(FAMILIES, 20)
    mixed = read_prompts(*corpus, replace(params, mixture={"sort": 0.5, "tool": 0.0}))
    assert families(mixed)["sort"] == 10 and "tool" not in families(mixed) and families(mixed)["lookup"] == 20
    alone = read_prompts(*corpus, replace(params, mixture=dict.fromkeys(set(FAMILIES) - {"sort"}, 0.0)))
    assert families(alone) == {"sort": 20}
    with pytest.raises(UserError, match=r"rl.mixture: no prompts of family 'chess' - name some of arithmetic"):
        read_prompts(*corpus, replace(params, mixture={"chess": 1.0}))
    with pytest.raises(UserError, match="no prompt of at most 1 tokens"):
        read_prompts(*corpus, replace(params, max_prompt_tokens=1))


def test_a_family_and_an_environment_of_one_name_share_no_id(corpus):
    params = replace(PARAMS, max_prompt_tokens=4000, environments={"arithmetic": 1.0}, environment_prompts=50)
    rows = [row for row in read_prompts(*corpus, params) if row["family"] == "arithmetic"]
    assert len(rows) == 70 == len({row["id"] for row in rows})


@pytest.mark.parametrize("solved, tries", [(3, 10), (7, 10), (1, 3), (5, 6)])
def test_what_is_solved_in_just_the_share_that_is_allowed_stays(tmp_path, monkeypatch, solved, tries):
    """Solved tries first; a corpus's prompt and an environment's, tried side by side."""
    generator = Generator.__new__(Generator)
    rows = [{"id": name} for name in ("arithmetic-000000", "environment/arithmetic-000000")]
    vars(generator).update(kept=tmp_path, rows=rows, worker=0, workers=1, params=replace(
        PARAMS, curriculum=Curriculum(samples=tries, drop_above=solved / tries), prompts_per_step=2, generations_per_prompt=tries))
    monkeypatch.setattr(generator, "_samples", lambda rows, n, *_: [
        SimpleNamespace(id=row["id"], reward=float(at < solved)) for row in rows for at in range(n)])
    generator._try()
    assert generator.ordered == rows


def test_what_was_tried_before_a_kill_is_not_tried_again(tmp_path, monkeypatch):
    rows, asked = [{"id": str(number)} for number in range(7)], []

    def measured(kept, kill_after):
        generator = Generator.__new__(Generator)
        vars(generator).update(kept=kept, rows=rows, worker=0, workers=1, params=replace(
            PARAMS, curriculum=Curriculum(samples=2, drop_above=1.0), prompts_per_step=1, generations_per_prompt=4))

        def samples(part, n, seed, version):
            if len(asked) == kill_after:
                raise RuntimeError("killed")
            asked.append((seed, *(row["id"] for row in part)))
            return [SimpleNamespace(id=row["id"], reward=float(seed + int(row["id"]) + at & 1)) for row in part for at in range(n)]

        monkeypatch.setattr(generator, "_samples", samples)
        generator._try()
        return generator.ordered

    whole = measured(tmp_path / "whole", 4)
    unbroken, asked = asked, []
    with pytest.raises(RuntimeError, match="killed"):
        measured(tmp_path / "killed", 2)
    assert measured(tmp_path / "killed", 4) == whole and asked == unbroken and len(unbroken) == 4


def test_a_pass_asks_every_prompt_once_in_a_new_order():
    rows = [{"id": str(number)} for number in range(64)]
    params = replace(PARAMS, prompts_per_step=16)
    passes = [[row["id"] for step in range(first, first + 4) for row in pick(rows, step, params)] for first in (0, 4)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(row["id"] for row in rows) and passes[0] != passes[1]
    assert passes[0] == [row["id"] for step in range(4) for row in pick(rows, step, params)]


def test_the_curriculum_drops_what_is_solved_and_goes_from_easy_to_hard():
    rows = [{"id": str(number)} for number in range(100)]
    solved = {row["id"]: int(row["id"]) % 5 / 4 for row in rows}
    kept = by_difficulty(rows, solved, drop_above=0.99)
    assert len(kept) == 80 and [solved[row["id"]] for row in kept] == [0.75] * 20 + [0.5] * 20 + [0.25] * 20 + [0.0] * 20
    with pytest.raises(UserError, match=r"rl.curriculum.drop_above: every prompt is solved more often than 0.99 - raise it"):
        by_difficulty([rows[4]], solved, 0.99)
    params = replace(PARAMS, curriculum=Curriculum(samples=4, drop_above=0.99), steps=8, prompts_per_step=10)
    means = [sum(solved[row["id"]] for row in pick(kept, step, params)) / 10 for step in range(8)]
    assert means == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0, 0.0]
    assert {row["id"] for step in range(8) for row in pick(kept, step, params)} == {row["id"] for row in kept}
