"""Evaluation text in training text: planted, brute force, and none where there is none."""

import importlib.metadata
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.decontamination import GRAM, EvaluationIndex
from components.curate.rules import scan

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
    return [text for text in (each.metadata.get_payload() for each in importlib.metadata.distributions()) if len(words(text)) > 300]


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
    for name, questions in (("long", long), ("short", short)):
        for row, question in enumerate(questions):
            found = matches(index, planted(random.choice(prose), question, random))
            assert [(match.set, match.row) for match in found] == [(name, row)]
    assert not [text for text in prose if matches(index, text)]


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


def test_an_empty_index_matches_nothing():
    assert not matches(EvaluationIndex.build({}), "any text " * 50)
    assert not matches(EvaluationIndex.build({"set": ["", "..."]}), "any text\n...\n\n" * 50)
