"""Conversations on disk: the same whatever the number of ranks, written once; bad rows are named by line, fatal or skipped and counted."""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from threading import Barrier

import pytest

from components.sft.conversations import Encoded, encode
from components.sft.params import Data
from stagecraft.contract.errors import UserError
from stagecraft.contract.files import sha256
from stagecraft.contract.params import load
from stagecraft.contract.runlog import RunLog
from stagecraft.data.conversations import encode_conversation, parse_conversation
from stagecraft.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from tests.checkpoints import VOCABULARY, tiny_checkpoint, tiny_tokenizer
from tests.sft.test_objective import PARAMS, PROFILE

PLAIN = replace(PARAMS.stages[0], modes=replace(PARAMS.modes, off=0.0, low=0.0, cut=0.0))


class Rank:
    """As `FirstRank`, for ranks that are threads."""

    def __init__(self, rank, said, barrier):
        self.rank, self.ranks, self.here, self._said, self._barrier = rank, len(said), rank == 0, said, barrier

    def gather(self, value):
        self._said[self.rank] = value
        self._barrier.wait()
        values = list(self._said)
        self._barrier.wait()
        return values

    def broadcast(self, value=None):
        return self.gather(value)[0]


def encode_on(ranks, corpus, directory, data, stage=PLAIN):
    """What `encode` returns or raises on each of so many ranks."""
    said, barrier = [None] * ranks, Barrier(ranks)

    def one(rank):
        try:
            return encode(corpus, replace(PARAMS, data=data), stage, directory, Rank(rank, said, barrier), None)
        except UserError as error:
            return error

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus")
    tiny_tokenizer().save_pretrained(directory / "tokenizer")
    return directory


def said(answer):
    return json.dumps({"messages": [{"role": "user", "content": "is it?"}, {"role": "assistant", "content": answer}]})


def plain(encoded):
    return [(ids.tolist(), mask.tolist()) for ids, mask in encoded]


def test_any_number_of_ranks_writes_the_same_once(corpus, tmp_path):
    lines = [said(f"yes, {number} times") for number in range(5)]
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("\n".join(lines[:2]) + "\n\n")
    second.write_text("\n".join(lines[2:]))
    data, tokenizer = Data(tasks=False, files=[str(first), str(second)], bad_rows="fail"), load_tokenizer(corpus / "tokenizer")
    expected = [encode_conversation(tokenizer, parse_conversation(line)) for line in lines]
    for ranks in (1, 2, 3, 7):  # of seven, two have no row
        for encoded in encode_on(ranks, corpus, tmp_path / str(ranks), data):
            assert plain(encoded) == expected
    first.unlink()
    (kept,) = encode_on(1, corpus, tmp_path / "7", data)  # from another number of ranks, without the rows
    assert plain(kept) == expected
    (tmp_path / "3" / "parts.json").unlink()  # a kill before all parts were there
    first.write_text("\n".join(lines[:2]))
    assert plain(encode_on(2, corpus, tmp_path / "3", data)[1]) == expected
    assert len(Encoded(tmp_path / "3")) == 5


def test_bad_rows_are_skipped_and_named_or_fatal_on_every_rank(corpus, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n" + "\n".join(said(answer) for answer in ["yes", "no " * 200, "yes", None]) + "\n")
    stage, data = replace(PLAIN, pack_tokens=64), Data(tasks=False, files=[str(path)], bad_rows="skip")
    for ranks in (1, 4):
        for encoded in encode_on(ranks, corpus, tmp_path / str(ranks), data, stage):
            assert len(encoded) == 2
            assert encoded.skipped[0].startswith(f"{path}:3: ") and "tokens do not fit into a pack of 64" in encoded.skipped[0]
            assert encoded.skipped[1] == f"{path}:5: message 2: its content is no text"
        told = {str(error) for error in encode_on(ranks, corpus, tmp_path / f"fatal-{ranks}", replace(data, bad_rows="fail"), stage)}
        assert len(told) == 1 and told.pop().startswith(f"{path}:3: ")
    path.write_text(said(None))
    (error,) = encode_on(1, corpus, tmp_path / "none", data, stage)
    assert str(error).startswith(f"{corpus}/tasks/sft.jsonl: no conversations - raise curate.tasks.sft_rows")


def test_a_file_that_was_mended_is_read_anew_unless_a_training_has_begun_with_it(corpus, tmp_path):
    path, work = tmp_path / "mine.jsonl", tmp_path / "work"
    path.write_text(said("yes") + "\n" + said("no"))
    data = Data(tasks=False, files=[str(path)], bad_rows="fail")
    (before,) = encode_on(1, corpus, work / "conversations-0", data)
    for ranks in (2, 1):
        path.write_text(said("yes") + "\n" + said(f"no, after {ranks}"))
        for after in encode_on(ranks, corpus, work / "conversations-0", data):
            assert plain(after)[0] == plain(before)[0] and plain(after)[1] != plain(before)[1]
            assert after.files == {str(path): sha256(path)}
    (work / "checkpoints" / "step-00000010").mkdir(parents=True)
    assert len(encode_on(1, corpus, work / "conversations-0", data)[0]) == 2
    path.write_text(said("no"))
    told = {str(error) for error in encode_on(2, corpus, work / "conversations-0", data)}
    assert told == {f"sft.data.files: {path}: the file is not what it was when this training began - put it back as it was, "
                    f"or delete {work} to begin anew with what it is now"}


def test_a_file_that_is_put_back_after_a_change_that_failed_is_read_anew(corpus, tmp_path):
    path = tmp_path / "mine.jsonl"
    before, data = "\n".join(said(f"a{row}") for row in range(4)), Data(tasks=False, files=[str(path)], bad_rows="fail")
    path.write_text(before)
    expected = plain(encode_on(2, corpus, tmp_path / "parts", data)[0])
    path.write_text("\n".join([*(said(f"b{row}") for row in range(3)), "{broken"]))
    for error in encode_on(2, corpus, tmp_path / "parts", data):
        assert str(error).startswith(f"{path}:4: not JSON: ")
    path.write_text(before)
    assert plain(encode_on(2, corpus, tmp_path / "parts", data)[0]) == expected


USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}


def function(**changes):
    return {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}} | changes}


@pytest.mark.parametrize(("row", "message"), [
    ({"messages": [USER, ASSISTANT], "tools": ["f"]}, "'tools' is no list of functions"),
    ({"messages": [USER, ASSISTANT], "tools": [1]}, "'tools' is no list of functions"),
    ({"messages": [USER, ASSISTANT], "tools": [{}]}, "'tools' is no list of functions"),
    ({"messages": [USER, ASSISTANT], "tools": [function(name=5)]}, "'tools' is no list of functions"),
    ({"messages": [USER, ASSISTANT], "tools": [function(parameters="a")]}, "'tools' is no list of functions"),
    ({"messages": [USER, ASSISTANT], "tools": [function(parameters={"properties": ["a"]})]}, "'tools' is no list of functions"),
    ({"messages": [USER, {"role": "assistant", "content": "a\ud83d"}]}, "half of a surrogate pair"),
    ({"messages": [ASSISTANT]}, "the first message is the assistant's"),
    ({"messages": [ASSISTANT, USER, ASSISTANT]}, "the first message is the assistant's"),
])
def test_a_row_that_no_template_can_write_is_named(corpus, tmp_path, row, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(said("yes") + "\n" + json.dumps(row) + "\n" + said("no"))
    stage = replace(PLAIN, modes=replace(PLAIN.modes, low=1.0))
    for each in (PLAIN, stage):
        (encoded,) = encode_on(1, corpus, tmp_path / "skip", Data(tasks=False, files=[str(path)], bad_rows="skip"), each)
        assert len(encoded) == 2 and encoded.skipped[0].startswith(f"{path}:2: ") and message in encoded.skipped[0]
        (error,) = encode_on(1, corpus, tmp_path / "fail", Data(tasks=False, files=[str(path)], bad_rows="fail"), each)
        assert str(error).startswith(f"{path}:2: ") and message in str(error)


def test_what_a_tokenizers_own_template_refuses_is_a_bad_row(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') if messages | length > 2 }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "mine.jsonl"
    path.write_text(said("yes") + "\n" + json.dumps({"messages": [USER, ASSISTANT, USER, ASSISTANT]}))
    (encoded,) = encode_on(1, tmp_path, tmp_path / "work", Data(tasks=False, files=[str(path)], bad_rows="skip"))
    assert len(encoded) == 1 and encoded.skipped == [f"{path}:2: the chat template cannot write it: roles must alternate"]


@pytest.mark.parametrize("stage, model", [("sft", "base"), ("rl", "sft"), ("quantize", "aligned")])
def test_a_corpus_with_other_tokens_than_the_models_is_one_line(tmp_path, stage, model):
    """Of as many entries: the model would learn from what is noise to it."""
    save_tokenizer(train_tokenizer([Path(argparse.__file__).read_text() + Path(json.__file__).read_text()], VOCABULARY),
                   tmp_path / "corpus" / "tokenizer", 512)
    inputs = {"corpus": tmp_path / "corpus", model: tiny_checkpoint(tmp_path / model)}
    module = import_module(f"components.{stage}.stage")
    with pytest.raises(UserError, match=f"the tokens of this corpus are not those of {tmp_path / model} - use the corpus"):
        module.main(load(module.Params, stage, PROFILE), inputs, {}, RunLog(stage, tmp_path / "plots", tmp_path))
