"""Which files of a folder of benchmarks hold what is asked."""

import json
import unicodedata

import pytest

from components.curate.evaluation import TASKS, evaluation_texts
from stagecraft.contract.errors import UserError
from stagecraft.data.decontamination import EvaluationIndex
from stagecraft.data.normalise import normalise
from stagecraft.data.pii import redact
from stagecraft.data.scan import scan

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


def test_a_text_matches_its_own_copy_as_the_steps_leave_it():
    texts = [unicodedata.normalize("NFD", "Une société a décidé de déplacer son siège à côté de la rivière située près du château"),
             "Please forward the complete signed contract to maria.lopez@contoso.com before Friday",
             "Write to the office at maria.lopez@contoso.com and ask them for a copy of the signed contract, please",
             "A question without anything that a step would change, only many words."]
    index = EvaluationIndex.build({"set": texts})
    for row, text in enumerate(texts):
        for copy in (normalise(text), redact(normalise(text))[0]):
            assert [match.row for match in index.matches(copy, scan(copy))] == [row]


def test_texts_without_blanks_count_by_their_letters(tmp_path):
    rows = [{"question": "日本で一番高い山の名前は何ですか", "subject": "地理", "place": "A 東京 C D"}]
    (tmp_path / "ja.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert evaluation_texts(NONE, str(tmp_path))["ja"] == [rows[0]["question"]]


def test_a_folder_without_any_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"curate\.benchmarks: .*: no .* file of a benchmark - name the folder"):
        evaluation_texts(NONE, str(tmp_path))
