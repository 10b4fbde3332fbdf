"""Rows of a user's files that cannot be learnt from: named by line, fatal or skipped and counted."""

import json
from dataclasses import replace

import pytest

from components.sft.params import Data
from components.sft.train import read_conversations
from stagecraft.contract.errors import UserError
from tests.checkpoints import tiny_tokenizer
from tests.sft.test_objective import PARAMS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    tiny_tokenizer().save_pretrained(directory / "tokenizer")
    return directory


def test_what_is_too_long_is_a_bad_row_like_others(corpus, tmp_path):
    answers = ["yes", "no " * 200, "yes", None]
    lines = [json.dumps({"messages": [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": answer}]})
             for answer in answers]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n" + "\n".join(lines) + "\n")
    params = replace(PARAMS, pack_tokens=64, data=Data(tasks=False, files=[str(path)], bad_rows="skip"))
    conversations, skipped = read_conversations(corpus, params, params.stages[0])
    assert len(conversations) == 2
    assert sorted(skipped)[0].startswith(f"{path}:3: ") and "tokens do not fit into a pack of 64" in sorted(skipped)[0]
    assert sorted(skipped)[1] == f"{path}:5: message 2: its content is no text"
    path.write_text("\n".join(lines[:2]))
    with pytest.raises(UserError, match=rf"{path}:2: [0-9]+ tokens do not fit into a pack of 64 - mend the line, or set bad_rows to skip"):
        read_conversations(corpus, replace(params, data=replace(params.data, bad_rows="fail")), params.stages[0])
