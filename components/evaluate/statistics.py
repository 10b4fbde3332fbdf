"""Standard errors, intervals and comparisons: what turns a score into evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_SEED, _RESAMPLES = 0, 2000
_POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error over `n` independent units (prompts, documents)."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Paired:
    """Two models on the same prompts: the first one's score less the second one's.

    Attributes:
        difference: mean over prompts.
        stderr: standard error of that mean; answers of two models to one prompt go together, so it is smaller than that of
            two unrelated samples.
        interval: of the difference, by the paired bootstrap: percentiles over samples of the prompts with replacement.
        p_value: two-sided: if the two were alike, each prompt's difference could as well have the other sign. For scores of 0 and 1
            that is McNemar's exact test: given how many prompts the two disagree on, is the split fair?
        wins: prompts on which the first model scores higher.
        losses: prompts on which the second model does.
        n: prompts.
    """

    difference: float
    stderr: float
    interval: tuple[float, float]
    p_value: float
    wins: int
    losses: int
    n: int

    def lower_bound(self, confidence: float, most: float = 1.0) -> float:
        """One-sided lower confidence bound of the difference of two scores.

        Student's, over the prompts and two more, one won and one lost, as D. G. Bonett and R. M. Price do (Adjusted Wald confidence
        interval for a difference of binomial proportions based on paired data, 2012): a few prompts on which two models agree have no
        spread, and are no proof that they are alike. Over hundreds of prompts the two hardly count; over a dozen a bound at 95% holds
        91 times in 100 at worst.

        Args:
            most: the most that one prompt can win or lose.
        """
        n = self.n + 2
        centre = self.n * self.difference / n
        squares = self.n * (self.n - 1) * self.stderr**2 + self.n * self.difference**2 + 2 * most**2
        stderr = math.sqrt(max(0.0, squares - n * centre**2) / (n - 1) / n)
        return centre - float(stats.t.ppf(confidence, n - 1)) * stderr


def mean(values: Sequence[float]) -> Estimate:
    """Mean with the standard error of the sample, s / sqrt(n); for zeros and ones that is sqrt(p (1 - p) / (n - 1)).

    Raises:
        ValueError: fewer than two values, whose spread is unknown.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        raise ValueError(f"a standard error needs at least two values, found {array.size}")
    return Estimate(float(array.mean()), float(array.std(ddof=1) / math.sqrt(array.size)), array.size)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """Sum over sum, as of bits over bytes, with the standard error clustered by unit (a document).

    The tokens of one document are no independent observations, the documents are. Linearisation of the ratio r (W. G. Cochran,
    Sampling Techniques, ch. 6): sqrt(n / (n - 1) * sum (x_i - r y_i)^2) / sum y_i.

    Raises:
        ValueError: fewer than two units, or lengths that differ.
    """
    x, y = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if x.shape != y.shape or x.size < 2:
        raise ValueError(f"a ratio needs at least two units with a numerator and a denominator each, found {x.size} and {y.size}")
    value = x.sum() / y.sum()
    residuals = x - value * y
    return Estimate(float(value), float(math.sqrt(x.size / (x.size - 1) * (residuals**2).sum()) / y.sum()), x.size)


def clustered(scores: Sequence[Sequence[float]]) -> Estimate:
    """avg@k: the mean over all answers to all prompts, with the standard error clustered by prompt.

    Args:
        scores: for each prompt those of its answers; a prompt's answers go together, so the prompts are the sample.
    """
    return ratio([sum(each) for each in scores], [len(each) for each in scores])


def paired(first: Sequence[float], second: Sequence[float], confidence: float) -> Paired:
    """Compare two models that answered the same prompts in the same order.

    Args:
        first, second: a score for each prompt; the mean of several answers is one score.
        confidence: of the interval.

    Raises:
        ValueError: fewer than two prompts, or lengths that differ.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same prompts, found {a.size} and {b.size}")
    differences = a - b
    estimate = mean(differences)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    values, counts = np.unique(differences, return_counts=True)  # prompts of one difference are alike: drawn by number, not one by one
    draws = np.random.default_rng(_SEED).multinomial(a.size, counts / a.size, _RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws @ values / a.size, [tail, 1 - tail])
    return Paired(estimate.value, estimate.stderr, (float(low), float(high)), _sign_test(differences, wins, losses), wins, losses, a.size)


def paired_ratio(first: Sequence[float], second: Sequence[float], sizes: Sequence[float], confidence: float) -> Paired:
    """Compare two models by a ratio of sums over the same units, such as bits over bytes of documents, of which less is better.

    Args:
        first, second: numerators, one for each unit.
        sizes: denominators, the same for both.
        confidence: of the interval, by the bootstrap over units.

    Returns:
        the first one's ratio less the second one's, with a standard error clustered by unit; a win is a unit of which the first has less.

    Raises:
        ValueError: fewer than two units, or lengths that differ.
    """
    a, b, sizes = (np.asarray(each, dtype=np.float64) for each in (first, second, sizes))
    if a.shape != b.shape:
        raise ValueError(f"a paired comparison needs the same units, found {a.size} and {b.size}")
    differences = a - b
    estimate = ratio(differences, sizes)
    wins, losses = int((differences < 0).sum()), int((differences > 0).sum())
    drawn = np.random.default_rng(_SEED).multinomial(a.size, np.full(a.size, 1 / a.size), _RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn @ differences) / (drawn @ sizes), [tail, 1 - tail])
    return Paired(estimate.value, estimate.stderr, (float(low), float(high)), _permuted(differences), wins, losses, a.size)


def _sign_test(differences: np.ndarray, wins: int, losses: int) -> float:
    if np.isin(differences, (-1.0, 0.0, 1.0)).all():
        return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0
    return _permuted(differences)


def _permuted(differences: np.ndarray) -> float:
    """Two-sided p-value of their sum, were the sign of each as good as the other."""
    moved = differences[differences != 0]
    if moved.size < 2:  # either sign of one is as far from 0
        return 1.0
    tested = stats.permutation_test((moved,), np.mean, permutation_type="samples", vectorized=True, n_resamples=_RESAMPLES,
                                    rng=np.random.default_rng(_SEED))
    return float(tested.pvalue)


def t_interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """Student's interval of the mean of a few independent measurements.

    Raises:
        ValueError: fewer than two values.
    """
    estimate = mean(values)
    half = float(stats.t.ppf((1 + confidence) / 2, estimate.n - 1)) * estimate.stderr
    return estimate.value - half, estimate.value + half


def geometric(values: Sequence[float], confidence: float) -> tuple[Estimate, tuple[float, float]]:
    """Geometric mean of a few independent rates or ratios, with Student's interval of their logarithms: it stays above zero, and that
    of the inverse ratios is the inverse.

    Raises:
        ValueError: fewer than two values.
    """
    logs = np.log(values)
    estimate, (low, high) = mean(logs), t_interval(logs, confidence)
    value = math.exp(estimate.value)
    return Estimate(value, value * estimate.stderr, estimate.n), (math.exp(low), math.exp(high))


def wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Wilson score interval of a proportion: sensible at 0 and 1, where the standard error is 0."""
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def minimum_detectable_difference(stderr: float, confidence: float) -> float:
    """The smallest true difference that a two-sided test at `confidence` finds four times in five, given the
    standard error of a difference (normal approximation)."""
    return float(stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(_POWER)) * stderr


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for having asked several questions (Holm's step-down): the family-wise error stays at the level."""
    adjusted, floor = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p_values}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k answers is right, from `correct` right ones among `samples`:
    1 - C(samples - correct, k) / C(samples, k) (arXiv 2107.03374, equation 1).

    Raises:
        ValueError: k exceeds `samples`.
    """
    if not 0 < k <= samples:
        raise ValueError(f"pass@{k} needs at least {k} samples, found {samples}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
