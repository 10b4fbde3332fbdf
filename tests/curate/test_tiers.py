"""The quality classifier orders texts it has not seen, its features agree with their definitions, and nothing in it is random."""

import ast
import json
import math
import random
import re
import string
import sysconfig
from collections import Counter
from email import message_from_string
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.linear_model import Ridge

from components.curate.tiers import classifier as classifier_module
from components.curate.tiers.classifier import Classifier, cross_validate, tier, train
from components.curate.tiers.features import BINS, CHARACTERS, DENSE, features
from components.curate.tiers.seeds import FEWEST, Seed, default_seeds, read_seeds
from stagecraft.contract.errors import UserError
from stagecraft.data.scan import scan

EXAMPLES = settings(max_examples=100, deadline=None, derandomize=True)
TEXTS = st.text(max_size=300) | st.text("aB1 .\n,=é", max_size=300)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return train(default_seeds())


def dense(text: str) -> dict[str, float]:
    return dict(zip(DENSE, features(text)[2]))


def test_default_seeds_are_balanced_short_and_distinct():
    seeds = default_seeds()
    counts = Counter(seed.tier for seed in seeds)
    assert set(counts) == {1, 2, 3, 4, 5}
    assert all(25 <= count <= 29 for count in counts.values())
    assert len({seed.text for seed in seeds}) == len(seeds)
    assert all(len(seed.text) < 1200 for seed in seeds)


def test_tiers_of_unseen_seeds_are_told():
    found = cross_validate(default_seeds())
    print(found)
    assert found["examples"] == len(default_seeds())
    assert found["mean_absolute_error"] < 0.8, "always saying 3 errs by 1.2"
    assert found["spearman"] > 0.75
    assert found["within_one"] > 0.9


def test_labels_without_meaning_are_not_told():
    """Shuffled labels: the cross-validation does not leak."""
    seeds = default_seeds()
    tiers = [seed.tier for seed in seeds]
    correlations = []
    for seed in range(5):
        random.Random(seed).shuffle(tiers)
        correlations.append(cross_validate([Seed(each.text, label) for each, label in zip(seeds, tiers)])["spearman"])
    assert abs(np.mean(correlations)) < 3 / math.sqrt(5 * len(seeds))


def junk_texts() -> list[str]:
    rng = random.Random(0)
    noise = ["".join(rng.choices(string.printable, k=1500)) for _ in range(40)]
    logs = ["\n".join(f"2024-05-{rng.randint(10, 30)} {rng.randint(10, 23)}:{rng.randint(10, 59)} {rng.choice(['INFO', 'WARN'])} "
                      f"{rng.choice(['request done', 'connection closed by peer'])} id={rng.getrandbits(32):x} t={rng.randint(1, 900)}ms"
                      for _ in range(25)) for _ in range(40)]
    return noise + logs


def prose_texts() -> list[str]:
    texts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text("utf-8", "replace"))) or ""
        texts.append(docstring)
    for path in sorted(Path(sysconfig.get_path("purelib")).glob("*.dist-info/METADATA"))[:150]:
        texts.append(message_from_string(path.read_text("utf-8", "replace")).get_payload())
    return [text for text in texts if len(text) > 300]


def test_real_prose_scores_above_noise_and_logs(model):
    low, high = (np.array([model.score(text) for text in texts]) for texts in (junk_texts(), prose_texts()))
    assert len(high) > 60
    statistic, p = mannwhitneyu(high, low, alternative="greater")
    rng = np.random.default_rng(0)
    gaps = [rng.choice(high, len(high)).mean() - rng.choice(low, len(low)).mean() for _ in range(2000)]
    low_gap, high_gap = np.percentile(gaps, [0.5, 99.5])
    print(f"prose {high.mean():.2f}, noise {low.mean():.2f}, gap in [{low_gap:.2f}, {high_gap:.2f}] (99%), p {p:.1e}, "
          f"chance that prose is above {statistic / len(high) / len(low):.3f}")
    assert low_gap > 0.5
    assert p < 1e-6


def test_words_are_counted_as_by_a_dictionary():
    text = "The cat saw the cat. The dog saw it, 42 times!"
    words = re.findall(r"\w+", text.lower())
    bins, values, _ = features(text)
    assert (np.diff(bins) > 0).all()
    assert bins.min() >= 0
    assert bins.max() < BINS
    single = Counter(words)
    hashes = dict(zip(words, scan(text).word_hash_lower.tolist()))
    pairs = Counter(pairwise(words))
    assert len(bins) == len(single) + len(pairs), "no collision in this text"
    weights = {hashes[word] % BINS: 1 + math.log(count) for word, count in single.items()}
    length = math.sqrt(sum((1 + math.log(count)) ** 2 for count in [*single.values(), *pairs.values()]))
    found = dict(zip(bins.tolist(), values.tolist()))
    for place, weight in weights.items():
        assert found[place] == pytest.approx(weight / length)


def test_statistics_by_hand():
    found = dense("The CAT saw 42 dogs.\nno\n\nThe CAT saw 42 dogs.\n")
    visible = 2 * len("TheCATsaw42dogs.") + 2
    assert found["word_length"] == pytest.approx((2 * 15 + 2) / 11)
    assert found["symbols"] == pytest.approx(2 / visible)
    assert found["prose_symbols"] == 1.0
    assert found["digits"] == pytest.approx(4 / visible)
    assert found["capitals"] == pytest.approx(8 / visible)
    assert found["stop_words"] == pytest.approx(3 / 11)
    assert found["words_with_digits"] == pytest.approx(2 / 11)
    assert found["unique_words"] == pytest.approx(6 / 11)
    assert found["sentence_length"] == pytest.approx(math.log1p(11 / 2))
    assert found["line_length"] == pytest.approx((20 + 2 + 20) / 3)
    assert found["short_lines"] == 1.0
    assert found["repeated_lines"] == pytest.approx(1 / 3)


@EXAMPLES
@given(TEXTS, st.text(" \n\t", max_size=5), st.text(" \n\t", max_size=5))
def test_any_text_has_finite_features_and_a_score(model, text, before, after):
    bins, values, statistics = features(text)
    assert np.isfinite(statistics).all()
    assert (statistics >= 0).all()
    assert np.linalg.norm(values) == pytest.approx(1 if len(bins) else 0)
    score = model.score(text)
    assert 1 <= score <= 5
    assert model.score(before + text + after) == score
    assert tier(score) in (1, 2, 3, 4, 5)


def test_only_the_beginning_counts(model):
    text = "Words of one text. " * 300
    assert model.score(text) == model.score(text[:CHARACTERS] + "z" * 10**6) == model.score("\n" * CHARACTERS + text)


def test_the_model_is_sklearns_ridge_on_the_features(model):
    """Up to the line that corrects the scores of unseen texts: one slope and one offset for all."""
    seeds = default_seeds()
    matrix = np.zeros((len(seeds), BINS + len(DENSE)))
    for row, seed in enumerate(seeds):
        bins, values, statistics = features(seed.text)
        matrix[row, bins] = classifier_module._WORDS * values
        matrix[row, BINS:] = statistics
    block = matrix[:, BINS:]
    far = classifier_module._FARTHEST
    matrix[:, BINS:] = np.clip((block - block.mean(axis=0)) / block.std(axis=0), -far, far)
    ridge = Ridge(alpha=classifier_module._PENALTY, solver="svd").fit(matrix[:, matrix.any(axis=0)], [seed.tier for seed in seeds])
    expected = ridge.predict(matrix[:, matrix.any(axis=0)])
    found = np.array([model.score(seed.text) for seed in seeds])
    inside = (found > 1) & (found < 5)
    slope, offset = np.polyfit(expected[inside], found[inside], 1)
    np.testing.assert_allclose(found[inside], offset + slope * expected[inside], atol=1e-6)
    assert 1 <= slope <= 2


def test_neither_order_nor_the_file_changes_a_bit(model, tmp_path):
    seeds = default_seeds()
    random.Random(1).shuffle(seeds)
    model.save(tmp_path / "a.npz")
    train(seeds).save(tmp_path / "b")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = Classifier.load(tmp_path / "b")
    for seed in seeds:
        assert loaded.score(seed.text) == model.score(seed.text)


def test_other_files_are_not_loaded(tmp_path):
    (tmp_path / "text").write_text("no arrays")
    np.savez(tmp_path / "short.npz", **dict.fromkeys(("words", "statistics", "mean", "deviation", "intercept"), np.zeros(3)))
    np.savez(tmp_path / "object.npz", words=np.array([{}], dtype=object))
    np.savez(tmp_path / "fewer.npz", words=np.zeros(BINS))
    for name in ("text", "short.npz", "object.npz", "fewer.npz", "missing.npz"):
        with pytest.raises(UserError, match=r"quality classifier.*train it again"):
            Classifier.load(tmp_path / name)


def test_tiers_are_the_nearest():
    assert [tier(score) for score in (1.0, 1.49, 1.5, 2.5, 3.4999, 4.5, 5.0)] == [1, 1, 2, 3, 3, 5, 5]


def rows() -> list[dict]:
    return [{"text": f"text {number} of tier {level}", "tier": level} for level in range(1, 6) for number in range(FEWEST)]


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_seeds_of_the_user(tmp_path):
    path = written(tmp_path / "seeds.jsonl", ["\ufeff" + json.dumps(rows()[0]), "", *map(json.dumps, rows()[1:])])
    assert read_seeds(path) == [Seed(**row) for row in rows()]
    assert 1 <= train(read_seeds(path)).score("text") <= 5


@pytest.mark.parametrize(("line", "message"), [
    ("{", "not JSON"), ("[1]", "not an object"), ('{"tier": 3}', "`text` is missing"), ('{"text": " ", "tier": 3}', "empty"),
    ('{"text": 7, "tier": 3}', "no string"), ('{"text": "a"}', "`tier` is None"), ('{"text": "a", "tier": 6}', "`tier` is 6"),
    ('{"text": "a", "tier": true}', "`tier` is True"), ('{"text": "a", "tier": 2.0}', "`tier` is 2.0"),
])
def test_bad_rows_are_named(tmp_path, line, message):
    path = written(tmp_path / "seeds.jsonl", [json.dumps(rows()[0]), "", line])
    with pytest.raises(UserError) as caught:
        read_seeds(path)
    assert message in str(caught.value)
    assert caught.value.where == f"{path}:3"


def test_missing_files_and_tiers_are_told(tmp_path):
    with pytest.raises(UserError, match="cannot read the seeds"):
        read_seeds(tmp_path / "none.jsonl")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot read the seeds"):
        read_seeds(tmp_path / "bytes.jsonl")
    path = written(tmp_path / "seeds.jsonl", [json.dumps(row) for row in rows()[1:] if row["tier"] != 4])
    with pytest.raises(UserError, match="tier 1: 4, tier 4: 0"):
        read_seeds(path)
