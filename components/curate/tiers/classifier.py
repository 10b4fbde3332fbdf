"""The quality classifier: ridge regression from a text's features to its tier, learnt from examples within a second."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from components.curate.tiers.features import BINS, DENSE, features
from components.curate.tiers.seeds import TIERS, Seed
from stagecraft.contract.errors import UserError

_WORDS = 6.0      # weight of the word part next to the statistics, each of variance 1
_PENALTY = 3.0    # of the ridge; both chosen by cross-validation on the shipped examples
_FARTHEST = 2.5   # standard deviations; statistics beyond what the examples show must not rule the score
_FOLDS = 5        # of the examples, to score each by a model that has not seen it
_STEEPEST = 2.0   # slope of the correction for unseen texts; examples that no model can tell apart would ask for any
_DECIMALS = 9     # coefficients are rounded to these, so that the last bits of a machine's linear algebra do not matter
_ARRAYS = ("words", "statistics", "mean", "deviation", "intercept")


@dataclass(frozen=True)
class Classifier:
    """A linear model of the tier.

    Args:
        words: float64 [BINS]; coefficients of the hashed words and word pairs.
        statistics: float64 [12]; coefficients of the standardised statistics.
        mean, deviation: float64 [12]; of the statistics over the examples.
        intercept: float64 [1].
    """

    words: np.ndarray
    statistics: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray
    intercept: np.ndarray

    def score(self, text: str) -> float:
        """Quality from 1 to 5, by the first 4000 characters."""
        bins, values, dense = features(text)
        standard = _standardise(dense, self.mean, self.deviation)
        # fsum rounds once, whatever the order, where a vectorised sum depends on the processor.
        score = math.fsum((*(self.words[bins] * values).tolist(), *(self.statistics * standard).tolist(), self.intercept[0]))
        return min(max(score, float(TIERS[0])), float(TIERS[-1]))

    def save(self, path: Path) -> None:
        """Write the coefficients; equal classifiers give equal bytes."""
        with open(path, "wb") as stream:
            np.savez_compressed(stream, **{name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            UserError: no such file, or one of other features than this version has.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                loaded = cls(**{name: stored[name] for name in _ARRAYS})
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"not a quality classifier: {error}", where=str(path), mend="train it again") from None
        if loaded.words.shape != (BINS,) or loaded.statistics.shape != (len(DENSE),):
            raise UserError("a quality classifier of another version", where=str(path), mend="train it again")
        return loaded


def tier(score: float) -> int:
    """The nearest tier, 1 to 5; a half is rounded up."""
    return min(max(math.floor(score + 0.5), TIERS[0]), TIERS[-1])


def train(seeds: Sequence[Seed]) -> Classifier:
    """Fit the model; the order of the examples does not matter.

    Raises:
        ValueError: fewer examples than folds.
    """
    from sklearn.linear_model import Ridge
    from threadpoolctl import threadpool_limits

    ordered = _mixed(seeds)
    target = np.array([float(seed.tier) for seed in ordered])
    measured = [features(seed.text) for seed in ordered]
    dense = np.array([statistics for _, _, statistics in measured])
    mean, deviation = dense.mean(axis=0), dense.std(axis=0)
    deviation[deviation < 1e-9] = 1.0
    used = np.unique(np.concatenate([bins for bins, _, _ in measured]))  # the other coefficients are 0
    matrix = np.zeros((len(ordered), len(used) + len(DENSE)))
    for row, (bins, values, _) in enumerate(measured):
        matrix[row, np.searchsorted(used, bins)] = _WORDS * values
    matrix[:, len(used):] = _standardise(dense, mean, deviation)

    with threadpool_limits(1):  # the number of threads would decide the order of sums
        unseen = np.empty(len(ordered))
        for fold in range(_FOLDS):
            test = np.arange(len(ordered)) % _FOLDS == fold
            unseen[test] = Ridge(alpha=_PENALTY, solver="cholesky").fit(matrix[~test], target[~test]).predict(matrix[test])
        model = Ridge(alpha=_PENALTY, solver="cholesky").fit(matrix, target)
    # The penalty draws the scores of unseen texts to the middle; the line from these scores to the tiers undoes that.
    slope = float(np.cov(unseen, target, bias=True)[0, 1] / max(unseen.var(), 1e-9))
    slope = min(max(slope, 1.0), _STEEPEST)
    coefficients, intercept = slope * model.coef_, target.mean() + slope * (model.intercept_ - unseen.mean())
    words = np.zeros(BINS)
    words[used] = _WORDS * coefficients[:len(used)]
    return Classifier(*(np.round(array, _DECIMALS) for array in (words, coefficients[len(used):], mean, deviation, np.array([intercept]))))


def cross_validate(seeds: Sequence[Seed]) -> dict[str, float]:
    """How well tiers of examples are told that the model has not seen; the folds have equal shares of every tier.

    Returns:
        examples, folds, mean absolute error in tiers, Spearman's rank correlation, share of exact tiers and of at most one off.
    """
    from scipy.stats import spearmanr

    ordered = _mixed(seeds)
    truth = np.array([seed.tier for seed in ordered])
    scores = np.empty(len(ordered))
    for fold in range(_FOLDS):
        model = train([seed for index, seed in enumerate(ordered) if index % _FOLDS != fold])
        for index in range(fold, len(ordered), _FOLDS):
            scores[index] = model.score(ordered[index].text)
    off = np.abs(np.array([tier(score) for score in scores]) - truth)
    return {
        "examples": len(ordered), "folds": _FOLDS, "mean_absolute_error": float(np.abs(scores - truth).mean()),
        "spearman": float(spearmanr(scores, truth).statistic), "exact": float((off == 0).mean()), "within_one": float((off <= 1).mean()),
    }


def _mixed(seeds: Sequence[Seed]) -> list[Seed]:
    """By tier, within it by hash: every n-th is a sample with equal shares of the tiers."""
    return sorted(seeds, key=lambda seed: (seed.tier, xxhash.xxh3_64_intdigest(seed.text.encode("utf-8", "surrogatepass")), seed.text))


def _standardise(dense: np.ndarray, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return np.clip((dense - mean) / deviation, -_FARTHEST, _FARTHEST)
