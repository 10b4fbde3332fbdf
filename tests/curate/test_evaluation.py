"""Which files of a folder of benchmarks hold what is asked."""

import json

import pytest

from components.curate.evaluation import TASKS, evaluation_texts
from stagecraft.contract.errors import UserError

NONE = {name: [] for name in TASKS}


def words(name):
    return f"{name} is a question of at least eight words or so"


def test_training_splits_count_only_where_there_is_nothing_else(tmp_path):
    for path in ("gsm8k/test.jsonl", "gsm8k/train.jsonl", "ifeval/train.jsonl", "alone.jsonl"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(json.dumps({"prompt": words(path), "subject": "few words"}) + "\n")
    found = evaluation_texts(NONE, str(tmp_path))
    assert {name: texts for name, texts in found.items() if name not in TASKS} == {
        "gsm8k": [words("gsm8k/test.jsonl")], "ifeval": [words("ifeval/train.jsonl")], "alone": [words("alone.jsonl")]}


def test_a_folder_without_any_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"curate\.benchmarks: .*: no .* file of a benchmark - name the folder"):
        evaluation_texts(NONE, str(tmp_path))
