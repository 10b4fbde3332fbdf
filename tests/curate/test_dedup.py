"""Duplicates against the truth: planted copies, exact Jaccard similarity, and any order, sharding or memory."""

import argparse
import difflib
import inspect
import re
import resource
import tarfile
import textwrap
import typing
from pathlib import Path
from random import Random
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.dedup.clusters import EXACT, KEPT, NEAR, find_duplicates
from components.curate.dedup.signature import EMPTY, WIDTH, signature, text_digest
from components.curate.shards.store import Signatures
from components.evaluate.statistics import wilson
from stagecraft.data.scan import scan
from tests.curate.intervals import recall_and_precision

MODULES: list[ModuleType] = [argparse, difflib, inspect, tarfile, textwrap, typing]
MEMORY = 10**8


def sign(text: str) -> np.ndarray:
    return signature(scan(text).word_hash_lower)


def grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[start:start + 5]) for start in range(max(1, len(words) - 4))}


def jaccard(left: str, right: str) -> float:
    return len(grams(left) & grams(right)) / len(grams(left) | grams(right))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Passages of 150 words of the standard library, distinct by construction."""
    words = [word for module in MODULES for word in re.findall(r"\w+", inspect.getsource(module))]
    return [" ".join(words[start:start + 150]) for start in range(0, len(words) - 150, 150)]


def edited(text: str, share: float, random: Random) -> str:
    words = text.split()
    for place in random.sample(range(len(words)), round(share * len(words))):
        words[place] = f"other{random.random()}".replace(".", "")
    return " ".join(words)


def test_the_estimate_is_unbiased(texts):
    random = Random(0)
    errors = []
    for text in texts[:150]:
        other = edited(text, random.choice((0.01, 0.02, 0.05, 0.1)), random)
        errors.append(float((sign(text) == sign(other)).mean()) - jaccard(text, other))
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(len(errors))
    assert np.std(errors) < 0.06  # sqrt(0.25 / 112) = 0.047 at worst


def run(texts: list[str], ids: list[int], similarity: float = 0.75, shards: int = 1, memory: int = MEMORY):
    signatures = np.array([sign(text) for text in texts], np.uint32).reshape(-1, WIDTH)
    return find_duplicates(np.array(ids, np.uint64), np.array([text_digest(text) for text in texts], np.uint64),
                           np.array_split(signatures, shards), similarity, memory)


@pytest.mark.parametrize("share", [0.01, 0.02, 0.05, 0.1, 0.2, 0.3])
def test_planted_near_duplicates_are_found_as_often_as_the_theory_says(texts, share):
    random = Random(share)
    copies = [edited(text, share, random) for text in texts]
    similarity = [jaccard(text, copy) for text, copy in zip(texts, copies)]
    found = run([*texts, *copies], list(range(2 * len(texts))))
    hits = sum(found.kind[len(texts):] == NEAR)
    # Binomial in 112 rows for the threshold; the bands add little where the threshold is met.
    rows = np.arange(WIDTH + 1)
    expected = [binomial_tail(s, rows[rows >= 0.75 * WIDTH]) * (1 - (1 - s**8) ** 14) for s in similarity]
    low, high = wilson(int(hits), len(texts), 0.95)
    print(f"{share:.0%} of words edited: recall {hits / len(texts):.3f} [{low:.3f}, {high:.3f}], theory {np.mean(expected):.3f}")
    assert low - 0.03 <= np.mean(expected) <= high + 0.03
    right = found.keeper[len(texts):][found.kind[len(texts):] == NEAR] == np.flatnonzero(found.kind[len(texts):] == NEAR)
    assert all(right) and not any(found.kind[:len(texts)])  # each copy is taken for its own original, and no original for another
    if hits > 100:
        assert recall_and_precision(f"{share:.0%} edited", int(sum(right)), len(texts), int(sum(~right)))[1] > 0.95
    if share <= 0.01:
        assert low > 0.95
    if share >= 0.2:
        assert high < 0.05  # so different that they are no duplicates any more


def binomial_tail(probability: float, successes: np.ndarray) -> float:
    from scipy.stats import binom

    return float(binom.pmf(successes, WIDTH, probability).sum())


def test_exact_copies_are_all_found_and_the_smallest_id_stays(texts):
    count = len(texts)
    found = run([*texts, *(f"\n {text} \n" for text in texts)], [*range(count, 2 * count), *range(count)])
    right = found.keeper[:count] == np.arange(count, 2 * count)
    recall, precision = recall_and_precision("exact copies", int(sum(right)), count, int(sum(found.kind[count:] != KEPT)))
    assert recall > 0.98 and precision > 0.98 and all(right)
    assert set(found.kind[:count]) == {EXACT} and set(found.kind[count:]) == {KEPT} and set(found.estimate) == {1.0}


def test_signatures_on_disk_give_the_same_in_more_shards_than_files_may_be_open(texts, tmp_path):
    random = Random(2)
    several = [*texts[:150], *(edited(text, 0.02, random) for text in texts[:150])]
    signatures, ids = np.array([sign(text) for text in several]), np.arange(300).astype(np.uint64)
    digests, shards = np.array([text_digest(text) for text in several], np.uint64), []
    for number, part in enumerate(np.array_split(signatures, 400)):  # some are empty
        (tmp_path / str(number)).mkdir()
        part.tofile(tmp_path / str(number) / "signatures.bin")
        shards.append(Signatures(tmp_path / str(number)))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 20, limits[1]))
    try:
        found = find_duplicates(ids, digests, shards, 0.75, MEMORY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    wanted = find_duplicates(ids, digests, [signatures], 0.75, MEMORY)
    assert sum(wanted.kind == NEAR) > 100
    for name in ("keeper", "kind", "estimate"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name))


def test_chains_keep_one(texts):
    random = Random(1)
    chain = [texts[0]]
    for _ in range(6):
        chain.append(edited(chain[-1], 0.013, random))
    found = run(chain, [5, 3, 6, 2, 9, 4, 8])
    assert found.keeper.tolist() == [3] * 7


def test_texts_without_words_are_no_near_duplicates():
    assert (sign("...") == EMPTY).all()
    assert run(["...", "!!!", ""], [1, 2, 3]).kind.tolist() == [KEPT, KEPT, KEPT]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_neither_order_nor_shards_nor_memory_matter(texts, data):
    random = data.draw(st.randoms(use_true_random=False))
    pool = [*texts[:12], *texts[:4], *(edited(text, 0.01, random) for text in texts[:8] for _ in range(2))]
    ids = random.sample(range(10**6), len(pool))
    whole = run(pool, ids)
    order = random.sample(range(len(pool)), len(pool))
    other = run([pool[at] for at in order], [ids[at] for at in order], shards=data.draw(st.integers(1, 5)),
                memory=data.draw(st.sampled_from([50, 500, MEMORY])))
    for place, at in enumerate(order):
        assert order[other.keeper[place]] == whole.keeper[at]
        assert other.kind[place] == whole.kind[at] and other.estimate[place] == whole.estimate[at]


def test_what_is_taken_for_near_is_near(texts):
    random = Random(2)
    pool = [*texts, *(edited(text, random.choice((0.01, 0.03, 0.05)), random) for text in texts)]
    found = run(pool, list(range(len(pool))))
    removed = np.flatnonzero(found.kind == NEAR)
    assert len(removed) > 50
    assert min(jaccard(pool[index], pool[found.keeper[index]]) for index in removed) > 0.75 - 4 * 0.047
