"""Evaluation text in training text: planted, brute force, and none where there is none."""

import re
from pathlib import Path
from random import Random
from sysconfig import get_path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagecraft.data.decontamination import GRAM, EvaluationIndex, words_of
from stagecraft.data.scan import scan
from tests.curate.intervals import recall_and_precision

WORDS = st.lists(st.sampled_from("alpha Beta gamma delta, eps".split()), min_size=0, max_size=40).map(" ".join)


def matches(index: EvaluationIndex, text: str):
    return index.matches(text, scan(text))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@settings(deadline=None)
@given(st.lists(WORDS, max_size=5), st.lists(WORDS, max_size=4))
def test_as_a_plain_search_finds_it(texts, lines):
    document = "\n".join(lines)
    index = EvaluationIndex.build({"set": texts})
    grams = {tuple(words(text)[at:at + GRAM]) for text in texts for at in range(len(words(text)) - GRAM + 1)}
    short = {tuple(words(text)) for text in texts if 0 < len(words(text)) < GRAM}
    seen = words(document)
    shared = any(tuple(seen[at:at + GRAM]) in grams for at in range(len(seen) - GRAM + 1))
    assert bool(matches(index, document)) == (shared or any(tuple(words(line)) in short for line in lines))


@pytest.fixture(scope="module")
def prose() -> list[str]:
    """Modules of the standard library, read as files: the descriptions of packages, by `importlib.metadata`, are gone in a process that
    has imported `importlib_metadata`, which takes the standard library's place and moves them into a header."""
    texts = (path.read_text("utf-8") for path in sorted(Path(get_path("stdlib")).glob("*.py")))
    return [text for text in texts if len(words(text)) > 300][:100]


def planted(text: str, question: str, random: Random) -> str:
    """The question inside the text, with other case, punctuation and line breaks."""
    lines = text.split("\n")
    disguised = "\n".join(re.sub(r" ", lambda _: random.choice((" ", "  ", ", ")), question.upper()).split("\n"))
    lines.insert(random.randrange(len(lines)), disguised)
    return "\n".join(lines)


def test_planted_questions_are_found_and_clean_text_is_clean(prose):
    random = Random(0)
    vocabulary = [word for text in prose[:20] for word in words(text)]
    long = [" ".join(random.choices(vocabulary, k=30)) for _ in range(100)]
    short = [" ".join(random.choices(vocabulary, k=8)) for _ in range(100)]
    index = EvaluationIndex.build({"long": long, "short": short})
    wrong = sum(bool(matches(index, text)) for text in prose)
    for name, questions in (("long", long), ("short", short)):
        found = [matches(index, planted(random.choice(prose), question, random)) for question in questions]
        right = sum([(match.set, match.row) for match in each] == [(name, row)] for row, each in enumerate(found))
        recall, precision = recall_and_precision(f"{name} questions", right, len(questions), wrong)
        assert recall > 0.96 and precision > 0.96 and right == len(questions) and not wrong


def test_part_of_a_long_question_is_enough_and_twelve_words_are_not(prose):
    question = " ".join(f"word{number}" for number in range(40))
    index = EvaluationIndex.build({"set": [question]})
    assert matches(index, f"{prose[0]} {' '.join(question.split()[10:23])} {prose[1]}")[0].kind == "13-gram"
    assert not matches(index, f"{prose[0]} {' '.join(question.split()[10:22])} {prose[1]}")


def test_a_match_tells_where(tmp_path):
    index = EvaluationIndex.build({"a": ["What is 2 + 2?"], "b": ["How many legs has a spider"]})
    index.save(tmp_path / "index.npz")
    for each in (index, EvaluationIndex.load(tmp_path / "index.npz")):
        match, = matches(each, "First line.\n  how many LEGS has a spider?!\nLast.")
        assert (match.set, match.row, match.kind, match.text) == ("b", 0, "line", "how many LEGS has a spider?!")
        assert not matches(each, "I asked how many legs has a spider, and he did not know.")


MIXED = st.text(alphabet="aB1_é, \n水川ひカタ々ไทཀ", max_size=30)


@given(MIXED)
def test_words_are_the_scans_but_for_scripts_without_blanks(text):
    scanned = scan(text)
    found = words_of(scanned)
    pieces = re.findall(r"[水川ひカタ々ไท]|[aB1_éཀ]+", text)
    assert [text[start:end] for start, end in zip(found.starts, found.ends)] == pieces
    assert found.hashes.tolist() == [scan(piece).word_hash_lower[0] for piece in pieces]
    if len(pieces) == len(scanned.word_start):
        assert np.array_equal(found.hashes, scanned.word_hash_lower)


def test_a_question_without_blanks_is_found_inside_a_paragraph_and_a_part_of_it():
    question = "珍妮特的鸭子每天下16颗蛋，她每天早上早餐时吃掉三颗。"
    index = EvaluationIndex.build({"zh": [question], "ja": ["一番高い山は何ですか"]})
    match, = matches(index, f"这是一个故事。{question}后来呢？")
    assert (match.set, match.kind, match.text) == ("zh", "13-gram", "珍妮特的鸭子每天下16颗蛋，她")
    assert matches(index, "前の行\n一番高い山は何ですか？\n次の行")[0].kind == "line"
    assert not matches(index, "珍妮特的鸭子每天下蛋。一番高い山は何でしたか。")


def test_an_empty_index_matches_nothing():
    assert not matches(EvaluationIndex.build({}), "any text " * 50)
    assert not matches(EvaluationIndex.build({"set": ["", "..."]}), "any text\n...\n\n" * 50)
