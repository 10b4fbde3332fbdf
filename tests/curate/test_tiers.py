"""The classifier against texts it has not seen, and the category of documents."""

import argparse
import functools
import importlib.metadata
import inspect
import json
import logging
import textwrap
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curate.categories import CATEGORIES, category
from components.curate.tiers.classifier import Classifier, cross_validate, tier, train
from components.curate.tiers.seeds import default_seeds, read_seeds
from stagecraft.contract.errors import UserError


@pytest.fixture(scope="module")
def model() -> Classifier:
    return train(default_seeds())


def test_unseen_seeds_are_scored_near_their_tier():
    measured = cross_validate(default_seeds())
    print(measured)
    assert measured["mean_absolute_error"] < 0.9 and measured["spearman"] > 0.75 and measured["within_one_tier"] > 0.8


def test_real_prose_scores_above_junk(model):
    random = Random(0)
    documented = [each for module in (argparse, functools, logging) for _, each in inspect.getmembers(module, callable)]
    good = [textwrap.dedent(inspect.getdoc(each)) for each in documented if len(inspect.getdoc(each) or "") > 300]
    junk = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz0123456789   \n", k=600)) for _ in range(20)]
    junk += ["\n".join(f"{random.random():.4f} {random.random():.4f}" for _ in range(60)) for _ in range(20)]
    scores = np.array([model.score(text) for text in good]), np.array([model.score(text) for text in junk])
    difference = scores[0].mean() - scores[1].mean()
    error = np.sqrt(sum(part.var(ddof=1) / len(part) for part in scores))
    assert len(good) >= 10 and difference - 1.96 * error > 0.5
    descriptions = [each.metadata.get_payload() for each in importlib.metadata.distributions()]
    assert np.mean([model.score(text) for text in descriptions if len(text) > 2000]) > scores[1].mean()


def test_training_is_deterministic_and_survives_a_file(model, tmp_path):
    train(default_seeds()).save(tmp_path / "one.npz")
    train(default_seeds()).save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert Classifier.load(tmp_path / "one.npz").score("Some text about rivers.") == model.score("Some text about rivers.")


@settings(deadline=None)
@given(st.text())
def test_any_text_has_a_score_a_tier_and_a_category(model, text):
    score = model.score(text)
    assert 1 <= score <= 5 and tier(score) in range(1, 6)
    made = category(text, {"path": "a.txt", "language": "en"}, tier(score))
    assert made in CATEGORIES and made == category(f"\n {text}  ", {"path": "a.txt", "language": "en"}, tier(score))


@pytest.mark.parametrize("text, metadata, expected", [
    ("def f(): pass", {"path": "pkg/a.py"}, "code"), ("x", {"path": "a.c.gz"}, "code"),
    ("Der Fluss ist breit.", {"path": "a.txt", "language": "de"}, "multilingual"),
    ("By the lemma, the polynomial has an integer root; the proof of the theorem follows from the equation.", {"path": "a.txt"}, "math"),
    ("The enzyme binds the protein in the cell, as the experiment with another molecule showed.", {"path": "a.txt"}, "academic"),
    ("A river.", {"path": "a.jsonl:3", "url": "https://en.wikipedia.org/wiki/River"}, "wikipedia"),
    ("A river.", {"path": "a.jsonl:3", "category": "finepdfs-high"}, "finepdfs-high"),
    ("A river.", {"path": "a.jsonl:3", "category": "no such"}, "crawl-high"),
])
def test_categories(text, metadata, expected):
    assert len(set(CATEGORIES)) == 16
    assert category(text, {"language": "en", **metadata}, 4) == expected


def test_a_user_may_bring_seeds(tmp_path, model):
    path = tmp_path / "seeds.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{'good' if level > 3 else 'bad'} text number {number}", "tier": level})
                              for level in range(1, 6) for number in range(5)))
    mine = train(read_seeds(path))
    assert mine.score("good text number 9") > mine.score("bad text number 9")


@pytest.mark.parametrize("content, message", [
    ("{", ":1: not a seed"), ('{"text": "a", "tier": 6}', "outside 1 to 5"), ('{"text": " ", "tier": 1}', "an empty text"),
    ('{"text": "a", "tier": 1}\n' * 5, "0 seeds of tier 2"),
])
def test_bad_seeds_are_one_line(tmp_path, content, message):
    path = tmp_path / "seeds.jsonl"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_seeds(path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot read seeds"):
        read_seeds(tmp_path / "absent.jsonl")
