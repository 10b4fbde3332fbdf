"""Near-duplicates: the estimate against exact Jaccard, and planted near-copies found."""

from random import Random

import numpy as np
import pytest

from components.curate.minhash import near_duplicates, shingles, signature

WORDS = [f"w{number}" for number in range(5000)]


def text_of(random: Random, length: int = 400) -> list[str]:
    return random.choices(WORDS, k=length)


def edited(words: list[str], share: float, random: Random) -> list[str]:
    """Replace a share of the words, in one stretch: near-copies differ in passages."""
    size = round(len(words) * share)
    start = random.randrange(len(words) - size + 1)
    return words[:start] + text_of(random, size) + words[start + size:]


def exact_jaccard(left: str, right: str) -> float:
    """Of the sets of word 5-grams, by Python sets."""
    sets = [{tuple(words[i:i + 5]) for i in range(len(words) - 4)} for words in (left.split(), right.split())]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_the_estimate_is_the_exact_jaccard_within_its_error(share):
    random, errors = Random(1), []
    for _ in range(20):
        words = text_of(random)
        left, right = " ".join(words), " ".join(edited(words, share, random))
        known: dict[str, int] = {}
        estimate = (signature(shingles(left, known)) == signature(shingles(right, known))).mean()
        errors.append(estimate - exact_jaccard(left, right))
    assert np.abs(errors).max() < 4 * 0.5 / np.sqrt(112)  # 4 standard errors of one estimate at worst
    assert abs(np.mean(errors)) < 4 * 0.5 / np.sqrt(112 * 20)  # and no bias


def test_planted_near_copies_are_found_and_others_are_not():
    random = Random(2)
    originals = [text_of(random) for _ in range(100)]
    near = [edited(words, 0.03, random) for words in originals]  # Jaccard about 0.92
    far = [edited(words, 0.6, random) for words in originals]  # about 0.25
    found = near_duplicates([" ".join(words) for words in (*originals, *near, *far)], 0.75)
    caught = {index: kept for index, (kept, _) in found.items()}
    assert sum(caught.get(100 + index) == index for index in range(100)) >= 97
    assert not caught.keys() & set(range(100)) and not any(index >= 200 for index in caught)


def test_word_order_matters_case_and_punctuation_do_not():
    known: dict[str, int] = {}
    first, second = shingles("a b c d e f g", known), shingles("g f e d c b a", known)
    assert len(np.intersect1d(first, second)) == 0
    assert np.array_equal(first, shingles("A, b; C d\n e (f) g!", known))


@pytest.mark.parametrize("texts", [[], [""], ["one"], ["", ""], ["one two", "one two"]])
def test_tiny_texts(texts):
    assert set(near_duplicates(texts, 0.8)) == ({1} if len(texts) == 2 else set())
