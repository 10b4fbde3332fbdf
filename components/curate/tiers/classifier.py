"""A linear regression from features to the tier, as FineWeb-Edu scores pages from labelled examples (arXiv 2406.17557, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.curate.tiers.features import features
from components.curate.tiers.seeds import Seed

_PENALTY = 0.5      # of the squared weights
_DENSE_SCALE = 0.3  # of a standardised statistic beside a word vector of length 1
_FARTHEST = 2.0     # standard deviations


@dataclass(frozen=True)
class Classifier:
    """Weights of the hashed words, and of the statistics with their means and scales; float64."""

    words: np.ndarray
    statistics: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    intercept: float

    def score(self, text: str) -> float:
        """Quality of a text in [1, 5]."""
        hashed, statistics = features(text)
        value = hashed @ self.words + _standard(statistics, self.means, self.scales) @ self.statistics + self.intercept
        return float(min(5.0, max(1.0, value)))

    def save(self, path: Path) -> None:
        """Write a .npz file; equal classifiers give equal bytes."""
        np.savez(path, words=self.words, statistics=self.statistics, means=self.means, scales=self.scales, intercept=self.intercept)

    @classmethod
    def load(cls, path: Path) -> Classifier:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(stored["words"], stored["statistics"], stored["means"], stored["scales"], float(stored["intercept"]))


def tier(score: float) -> int:
    """The quality tier, 1 to 5, of a score."""
    return int(min(5, max(1, np.floor(score + 0.5))))


def train(seeds: Sequence[Seed]) -> Classifier:
    """Ridge regression on the tiers of the seeds; the order of the seeds does not matter beyond rounding."""
    from sklearn.linear_model import Ridge

    hashed, statistics = (np.stack(part) for part in zip(*(features(seed.text) for seed in seeds)))
    means, scales = statistics.mean(axis=0), np.maximum(statistics.std(axis=0), 1e-9)
    rows = np.hstack([hashed, _standard(statistics, means, scales)])
    model = Ridge(alpha=_PENALTY, solver="cholesky").fit(rows, [seed.tier for seed in seeds])
    weights = model.coef_
    return Classifier(weights[:hashed.shape[1]], weights[hashed.shape[1]:], means, scales, float(model.intercept_))


def _standard(statistics: np.ndarray, means: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Statistics in standard deviations, bounded: the seeds say nothing of texts far beyond them."""
    return np.clip((statistics - means) / scales, -_FARTHEST, _FARTHEST) * _DENSE_SCALE


def cross_validate(seeds: Sequence[Seed], folds: int = 5) -> dict[str, float]:
    """How well texts are scored that were not trained on: `seeds`, `mean_absolute_error` in tiers, `spearman` rank correlation,
    `within_one_tier` (share)."""
    from scipy.stats import spearmanr

    scores = np.empty(len(seeds))
    for fold in range(folds):
        model = train([seed for index, seed in enumerate(seeds) if index % folds != fold])
        for index in range(fold, len(seeds), folds):
            scores[index] = model.score(seeds[index].text)
    tiers = np.array([seed.tier for seed in seeds])
    return {"seeds": len(seeds), "mean_absolute_error": round(float(np.abs(scores - tiers).mean()), 4),
            "spearman": round(float(spearmanr(scores, tiers).statistic), 4),
            "within_one_tier": round(float((np.abs(np.array([tier(score) for score in scores]) - tiers) <= 1).mean()), 4)}
