"""Accounts, plans and long-document questions; a given tokenizer."""

import json

from hypothesis import given
from hypothesis import strategies as st

from components.curate.document_qa import ask
from components.curate.reading.listing import File
from components.curate.shards.plan import draw_sample, plan_shards
from components.curate.shards.tally import SAMPLES, Tally, merge
from components.curate.vocabulary import make_tokenizer
from tests.checkpoints import tiny_tokenizer
from tests.curate.test_stage import parameters

REMOVALS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99), st.uuids().map(str)), unique_by=lambda item: item[2], max_size=30)
FILES = st.lists(st.text("abcdef", min_size=1, max_size=8), unique=True, min_size=1, max_size=40)


def tally(removals) -> Tally:
    made = Tally("quality")
    for reason, size, identifier in removals:
        made.take(size)
        made.remove(reason, size, {"id": identifier})
    return made


@given(REMOVALS, st.integers(0, 30), st.randoms())
def test_accounts_do_not_depend_on_order_or_grouping(removals, cut, random):
    whole = tally(removals).plain()
    shuffled = random.sample(removals, len(removals))
    assert tally(shuffled).plain() == whole
    if removals:
        assert merge([tally(shuffled[:cut]), tally(shuffled[cut:])])[0].plain() == whole
    assert all(len(samples) <= SAMPLES for samples in whole["samples"].values())


def files(names: list[str]) -> list[File]:
    return [File("input", name, f"/{name}", 10, "1", "text") for name in sorted(names)]


@given(FILES, st.integers(1, 6), st.data())
def test_a_file_more_changes_the_key_of_one_shard(names, count, data):
    plan = plan_shards(files(names), count, "basis")
    assert sorted(file.name for shard in plan for file in shard.files) == sorted(names)
    gone = data.draw(st.sampled_from(names))
    without = plan_shards([file for file in files(names) if file.name != gone], count, "basis")
    assert len({shard.key for shard in plan} - {shard.key for shard in without}) == 1
    assert not {shard.key for shard in plan} & {shard.key for shard in plan_shards(files(names), count, "other")}


@given(FILES, st.integers(1, 400), st.integers(0, 400))
def test_a_larger_sample_holds_the_smaller(names, small, more):
    chosen = {file.name for file in draw_sample(files(names), small)}
    assert len(chosen) == min(len(names), -(-small // 10))
    assert chosen <= {file.name for file in draw_sample(files(names), small + more)}


def test_a_question_is_answered_by_the_document():
    lines = [f"Line {number} of the tale tells what happened on day {number}." for number in range(50)]
    text = "\n".join(lines) + "\n"
    asked = ask(text, "0123456789abcdef")
    assert asked == ask(text, "0123456789abcdef") and asked.startswith(text)
    quoted, answer = asked.split("follows this one?\n")[1].strip().split("\nAnswer: ")
    assert lines[lines.index(quoted) + 1] == answer
    assert ask("short\n" * 100, "0") is None


def test_documents_are_not_shortened_as_rows_were_for_which_a_tokenizer_was_used(tmp_path):
    given_one = tiny_tokenizer()
    given_one(["a longer text", "a"], truncation=True, max_length=3, padding=True)
    given_one.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"]["max_length"] == 3
    taken = make_tokenizer(None, None, [], parameters(tokenizer=str(tmp_path), vocab_size=len(given_one)))
    texts = ["a longer text", "a"]
    for text, encoding in zip(texts, taken.encode_batch_fast(texts, add_special_tokens=False)):
        assert taken.decode(encoding.ids, skip_special_tokens=False) == text
