"""What is refused of curate's parameters before anything is read or drawn, and that the shipped profiles are not."""

from dataclasses import replace
from pathlib import Path

import pytest

from components.curate.params import Params, TaskParams
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, parse
from stagecraft.contract.work import work_key
from stagecraft.data.tasks import FAMILIES

ROOT = Path(__file__).parents[2]
TASKS = {"sft_rows": 600, "rl_rows": 60, "heldout_rows": 60, "flawed": dict.fromkeys(FAMILIES, 0.0), "sft_weights": {}}


@pytest.mark.parametrize("profile", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))], ids=lambda path: path.stem)
def test_the_families_have_prompts_enough_for_every_profile(profile):
    tasks = load(Params, "curate", profile).tasks
    with pytest.raises(UserError, match=r"task family '\w+' can give \d+ rows"):
        parse(TaskParams, {**TASKS, "rl_rows": 1000 * tasks.rl_rows, "sft_rows": 1000 * tasks.sft_rows}, "curate.tasks")


def test_who_works_the_shards_and_where_the_author_is_asked_are_no_part_of_what_is_done():
    params = load(Params, "curate", ROOT / "params.yaml")

    def key(asked, **changes):
        author = replace(params.synthetic.endpoint, url="http://a/v1", model="writer")
        return work_key(replace(params, synthetic=replace(params.synthetic, endpoint=replace(author, **asked)), **changes), {})

    moved = {"url": "http://b/v1", "key_variable": "KEY", "concurrency": 1, "timeout_seconds": 9.0, "max_retries": 9}
    assert key({}) == key(moved, executor="ray", workers=9, memory_bytes=9, slurm=replace(params.slurm, partition="night"))
    assert len({key({}), key({"model": "another"}), key({"temperature": 0.1}), key({}, shards=3)}) == 4


@pytest.mark.parametrize(("changes", "message"), [
    ({"rl_rows": 200_000}, "task family 'tool' can give 24214 rows, no prompt twice, and 33443 are asked of it"),
    ({"sft_rows": 6, "sft_weights": {"arithmetic": 2.5, "lookup": 0.5, "sort": 0.7, "tool": 0.5}}, "task family 'tool' would get none"),
    ({"flawed": {"tool": 0.0, "chess": 0.0}}, "unknown task family 'chess'"),
])
def test_rows_that_cannot_be_had_are_one_line(changes, message):
    with pytest.raises(UserError) as caught:
        parse(TaskParams, {**TASKS, **changes}, "curate.tasks")
    assert message in str(caught.value) and "\n" not in str(caught.value)
