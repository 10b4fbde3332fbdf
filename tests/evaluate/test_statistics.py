"""Statistics against closed forms, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from components.evaluate import statistics

booleans = st.lists(st.booleans(), min_size=2, max_size=60)


@given(booleans)
def test_standard_error_of_a_proportion_is_the_closed_form(values):
    n, p = len(values), sum(values) / len(values)
    estimate = statistics.mean(values)
    assert estimate.value == pytest.approx(p)
    assert estimate.stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert estimate.stderr == pytest.approx(stats.sem(np.asarray(values, float)))


def test_one_value_has_no_standard_error():
    with pytest.raises(ValueError, match="at least two"):
        statistics.mean([1.0])
    with pytest.raises(ValueError, match="at least two"):
        statistics.ratio([1.0], [2.0])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_a_ratio_over_equal_denominators_is_a_mean(values):
    mean, ratio = statistics.mean(values), statistics.ratio(values, [1.0] * len(values))
    assert (ratio.value, ratio.stderr) == pytest.approx((mean.value, mean.stderr), abs=1e-9)


def test_the_standard_error_of_a_ratio_is_that_of_resampled_documents():
    random = np.random.default_rng(0)
    sizes = random.integers(200, 2000, 80).astype(float)
    bits = sizes * random.normal(2.0, 0.3, 80)
    estimate = statistics.ratio(bits, sizes)
    draws = random.integers(0, 80, (4000, 80))
    resampled = bits[draws].sum(1) / sizes[draws].sum(1)
    assert estimate.stderr == pytest.approx(resampled.std(), rel=0.06)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_paired_comparison(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    found = statistics.paired(first, second, 0.95)
    wins, losses, n = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs), len(pairs)
    assert found.difference == pytest.approx((wins - losses) / n)
    assert found.stderr == pytest.approx(math.sqrt(max(0, wins + losses - (wins - losses) ** 2 / n) / (n * (n - 1))))
    tail = sum(math.comb(wins + losses, i) for i in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    swapped = statistics.paired(second, first, 0.95)
    assert (swapped.difference, swapped.p_value) == (-found.difference, found.p_value)


@settings(max_examples=30)
@example([(0, 0, 1), (0, 0, 1), (0, 0, 1), (0, 1, 1)])
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(1, 50)), min_size=2, max_size=9))
def test_paired_ratios(units):
    """The p-value by all signs there are; standard error and interval of one document's ratios against samples of documents."""
    first, second, sizes = ([float(each) for each in column] for column in zip(*units))
    found = statistics.paired_ratio(first, second, sizes, 0.9)
    moved = [a - b for a, b in zip(first, second) if a != b]
    sums = [abs(sum(sign * each for sign, each in zip(signs, moved))) for signs in itertools.product((1, -1), repeat=len(moved))]
    assert found.p_value == pytest.approx(sum(each >= abs(sum(moved)) - 1e-9 for each in sums) / len(sums))
    assert found.difference == pytest.approx(sum(first) / sum(sizes) - sum(second) / sum(sizes), abs=1e-12)
    assert (found.wins, found.losses, found.n) == (sum(each < 0 for each in moved), sum(each > 0 for each in moved), len(units))
    random = np.random.default_rng(1)
    drawn = random.integers(0, len(units), (4000, len(units)))
    resampled = (np.array(first) - np.array(second))[drawn].sum(1) / np.array(sizes)[drawn].sum(1)
    # Few documents have few means: an end lies on one of two where the tail of the one is 5% nearly, so the tail is what is held.
    for end, (low, high) in zip(found.interval, ((0.02, 0.08), (0.92, 0.98))):
        assert np.quantile(resampled, low) - 1e-9 <= end <= np.quantile(resampled, high) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40), st.sampled_from([0.8, 0.95]))
def test_the_lower_bound_is_students_with_a_prompt_won_and_one_lost(pairs, confidence):
    first, second = [a / 4 for a, _ in pairs], [b / 4 for _, b in pairs]
    found = statistics.paired(first, second, 0.95)
    for most in (1.0, 0.5):
        sample = [*(a - b for a, b in zip(first, second)), most, -most]
        expected = stats.ttest_1samp(sample, 0, alternative="greater").confidence_interval(confidence).low
        assert found.lower_bound(confidence, most) == pytest.approx(expected, abs=1e-9)


def made(n, wins, losses):
    """`paired` of 0/1 scores without its bootstrap and its test."""
    estimate = statistics.mean([1.0] * wins + [-1.0] * losses + [0.0] * (n - wins - losses))
    return statistics.Paired(estimate.value, estimate.stderr, (0.0, 0.0), 1.0, wins, losses, n)


@pytest.mark.parametrize("n", [12, 20, 50])
def test_the_lower_bound_holds_for_few_prompts_too(n):
    """The chance, over all splits there are, that the true difference is not below it; a normal bound's is 11% for 12 prompts."""
    splits = np.array([(wins, losses) for wins in range(n + 1) for losses in range(n + 1 - wins)])
    bounds = np.array([made(n, *each).lower_bound(0.95) for each in splits.tolist()])
    for differing, won in itertools.product((0.01, 0.05, 0.2, 0.5, 1.0), (0.0, 0.1, 0.5, 0.9, 1.0)):
        chances = [differing * won, differing * (1 - won)]
        weights = stats.multinomial.pmf(np.column_stack([splits, n - splits.sum(1)]), n, [*chances, 1 - differing])
        assert weights[bounds <= chances[0] - chances[1] + 1e-12].sum() > 0.91


@pytest.mark.parametrize(("wins", "losses"), [(200, 14), (186, 0), (4, 10), (6, 25), (13, 32), (1, 5)])
def test_over_the_prompts_of_the_profile_it_is_the_normal_bound(wins, losses):
    """Alignment's gain and what quantisation loses, as the README has them: by less than 0.3 points."""
    found = made(600, wins, losses)
    normal = found.difference - stats.norm.ppf(0.95) * found.stderr
    assert abs(found.lower_bound(0.95) - normal) < 0.003


def test_paired_comparison_wants_the_same_prompts():
    with pytest.raises(ValueError, match="same prompts"):
        statistics.paired([True, False], [True], 0.95)


def test_one_prompt_that_differs_by_a_part_says_nothing():
    assert statistics.paired([0.5, 1.0, 1.0], [0.0, 1.0, 1.0], 0.95).p_value == 1.0


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_interval_is_the_closed_form(counts, confidence):
    k, n = counts
    p, z = k / n, stats.norm.ppf((1 + confidence) / 2)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert statistics.wilson(k, n, confidence) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)


def test_a_true_difference_of_the_detectable_size_is_found_four_times_in_five():
    stderr = 0.02
    difference = statistics.minimum_detectable_difference(stderr, 0.95)
    critical = stats.norm.ppf(0.975) * stderr
    power = stats.norm.sf(critical, difference, stderr) + stats.norm.cdf(-critical, difference, stderr)
    assert power == pytest.approx(0.8, abs=1e-4)


def test_holm_by_hand():
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert statistics.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert statistics.holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_stays_between_the_raw_value_and_bonferroni(values):
    raw = {str(i): p for i, p in enumerate(values)}
    for name, adjusted in statistics.holm(raw).items():
        assert raw[name] <= adjusted <= 1
        assert adjusted <= min(1, max(raw.values()) * len(raw)) + 1e-12


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_subsets_that_hold_a_right_answer(case):
    samples, correct, k = case
    subsets = list(itertools.combinations(range(samples), k))
    share = sum(any(i < correct for i in subset) for subset in subsets) / len(subsets)
    assert statistics.pass_at_k(samples, correct, k) == pytest.approx(share)


def test_pass_at_k_needs_k_samples():
    with pytest.raises(ValueError, match="at least 5"):
        statistics.pass_at_k(4, 1, 5)


def test_the_bootstrap_interval_is_that_of_scipy():
    random = np.random.default_rng(1)
    first, second = random.random(150), random.random(150)
    found = statistics.paired(first, second, 0.9)
    expected = stats.bootstrap((first - second,), np.mean, confidence_level=0.9, method="percentile", n_resamples=4000,
                               rng=np.random.default_rng(2)).confidence_interval
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.008)
    assert found.stderr == pytest.approx(stats.sem(first - second))


def test_p_values_of_partial_scores_are_those_of_all_sign_changes():
    first, second = [0.9, 0.2, 0.8, 0.75, 1.0, 0.4], [0.5, 0.25, 0.1, 0.5, 0.3, 0.4]
    differences = [a - b for a, b in zip(first, second) if a != b]
    sums = [abs(sum(sign * d for sign, d in zip(signs, differences))) for signs in itertools.product((1, -1), repeat=len(differences))]
    share = sum(value >= abs(sum(differences)) - 1e-12 for value in sums) / len(sums)
    assert statistics.paired(first, second, 0.95).p_value == pytest.approx(share)
    assert statistics.paired(first, first, 0.95).p_value == 1.0


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=20))
def test_avg_at_k_with_equal_repeats_is_the_mean_of_means(scores):
    clustered, mean = statistics.clustered(scores), statistics.mean([sum(each) / 3 for each in scores])
    assert (clustered.value, clustered.stderr) == pytest.approx((mean.value, mean.stderr), abs=1e-9)


def test_clustered_errors_cover_where_independent_ones_do_not():
    """Prompts are easy or hard, answers to one alike: the interval must hold the truth 95 times in 100."""
    random = np.random.default_rng(3)
    held, naive = 0, 0
    for _ in range(400):
        scores = (random.random((60, 8)) < random.choice([0.1, 0.9], size=(60, 1))).astype(float)
        estimate = statistics.clustered(scores.tolist())
        held += abs(estimate.value - 0.5) < stats.t.ppf(0.975, 59) * estimate.stderr
        naive += abs(estimate.value - 0.5) < 1.96 * stats.sem(scores.ravel())
    assert 0.92 <= held / 400 <= 0.975
    assert naive / 400 < 0.75


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-6), st.sampled_from([0.8, 0.95]))
def test_student_interval_is_that_of_scipy(values, confidence):
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert statistics.t_interval(values, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)
