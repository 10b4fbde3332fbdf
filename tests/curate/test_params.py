"""What is refused of curate's parameters before anything is read or drawn, and that the shipped profiles are not."""

from pathlib import Path

import pytest

from components.curate.params import Params, TaskParams
from stagecraft.contract.errors import UserError
from stagecraft.contract.params import load, parse
from stagecraft.data.tasks import FAMILIES

ROOT = Path(__file__).parents[2]
TASKS = {"sft_rows": 600, "rl_rows": 60, "heldout_rows": 60, "flawed": dict.fromkeys(FAMILIES, 0.0), "sft_weights": {}}


@pytest.mark.parametrize("profile", [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))], ids=lambda path: path.stem)
def test_the_families_have_prompts_enough_for_every_profile(profile):
    tasks = load(Params, "curate", profile).tasks
    with pytest.raises(UserError, match=r"task family '\w+' can give \d+ rows"):
        parse(TaskParams, {**TASKS, "rl_rows": 1000 * tasks.rl_rows, "sft_rows": 1000 * tasks.sft_rows}, "curate.tasks")


@pytest.mark.parametrize(("changes", "message"), [
    ({"rl_rows": 200_000}, "task family 'tool' can give 24214 rows, no prompt twice, and 33443 are asked of it"),
    ({"sft_rows": 6, "sft_weights": {"arithmetic": 2.5, "lookup": 0.5, "sort": 0.7, "tool": 0.5}}, "task family 'tool' would get none"),
    ({"flawed": {"tool": 0.0, "chess": 0.0}}, "unknown task family 'chess'"),
])
def test_rows_that_cannot_be_had_are_one_line(changes, message):
    with pytest.raises(UserError) as caught:
        parse(TaskParams, {**TASKS, **changes}, "curate.tasks")
    assert message in str(caught.value) and "\n" not in str(caught.value)
