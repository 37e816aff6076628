"""Intervals and rank groups of methods, on simulated results and against scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mldr_kd_mm.evaluation.statistics import holm, paired_difference, rank_groups
from mldr_kd_mm.utils.errors import ConfigError

accuracies = st.lists(st.floats(0, 100), min_size=2, max_size=8)


def by_seed(values):
    return dict(enumerate(map(float, values)))


def test_is_the_paired_t_test():
    """scipy's own test is the oracle."""
    a, b = [81.2, 80.1, 83.3, 79.9], [80.0, 80.3, 81.0, 78.8]
    found = paired_difference(by_seed(a), by_seed(b))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert found == pytest.approx((np.mean(a) - np.mean(b), *interval, expected.pvalue, 4))


def test_interval_covers_the_true_difference():
    """Of 1,000 simulated benchmarks with 3 seeds, the interval covers the truth in 95 %."""
    rng = np.random.default_rng(0)
    seed_effect, noise = rng.normal(0, 5, (1000, 1, 3)), rng.normal(0, 1, (1000, 2, 3))
    runs = 50 + seed_effect + noise + np.array([[1.5], [0.0]])
    covered = 0
    for a, b in runs:
        found = paired_difference(by_seed(a), by_seed(b))
        covered += found.low <= 1.5 <= found.high
    # Three standard deviations of the share.
    assert abs(covered / 1000 - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 1000)


@given(accuracies, st.floats(-50, 50), st.randoms(use_true_random=False))
def test_symmetries(values, shift, random):
    """Exchange, a common shift and the order of the seeds change nothing but the sign."""
    a, b = by_seed(values), by_seed(reversed(values))
    found, reverse = paired_difference(a, b), paired_difference(b, a)
    assert reverse.mean == pytest.approx(-found.mean)
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low))
    assert found.low <= found.mean <= found.high
    seeds = list(a)
    random.shuffle(seeds)
    moved = {seed: a[seed] + shift for seed in seeds}
    shifted = {seed: b[seed] + shift for seed in b}
    assert paired_difference(moved, shifted)[:3] == pytest.approx(found[:3], abs=1e-6)


def test_only_common_seeds_count():
    found = paired_difference({0: 50.0, 1: 52.0, 7: 99.0}, {0: 49.0, 1: 50.0, 3: 1.0})
    assert (found.mean, found.count) == (1.5, 2)
    assert paired_difference({0: 50.0}, {1: 50.0}) is None
    one = paired_difference({0: 50.0}, {0: 48.5})
    assert (str(one), one.is_significant) == ('+1.50', False)
    with pytest.raises(ConfigError, match='confidence=95: must be between 0 and 1'):
        paired_difference({}, {}, confidence=95)


def test_equal_differences():
    """Their spread is unknown, so two seeds of rounded accuracies prove nothing."""
    results = dict(high=by_seed([50.1, 60.2, 70.3]), low=by_seed([49.1, 59.2, 69.3]))
    found = paired_difference(*results.values())
    assert str(found) == '+1.00' and not found.is_significant and math.isnan(found.p_value)
    assert rank_groups(results) == dict(high='a', low='a')
    same = paired_difference(by_seed([50, 60]), by_seed([50, 60]))
    assert str(same) == '+0.00 [+0.00, +0.00]' and same.p_value == 1


def test_interval_and_text():
    found = paired_difference(by_seed([53, 57]), by_seed([50, 52]))
    # t = 12.706 with one degree of freedom, times a standard error of 1.
    assert str(found) == '+4.00 [-8.71, +16.71]'
    assert not found.is_significant


@given(st.lists(st.floats(0, 1), max_size=9))
def test_holm(p_values):
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    assert all(a <= min(1, p * len(p_values)) for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind='stable')
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)


def test_holm_of_a_known_example():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_groups():
    noise = np.array([0.0, 0.1, -0.1, 0.05, -0.05])
    results = dict(
        low=by_seed(50 + noise),
        high=by_seed(60 - noise),
        middle=by_seed([50, 60, 51, 59, 55]),
        alone={9: 99.0},
    )
    # `middle` is too uncertain to differ from either; `alone` shares no seed with any.
    assert rank_groups(results) == dict(alone='ab', high='a', middle='ab', low='b')


def test_false_differences_are_rare():
    """Of 300 benchmarks of four equal methods, at most 5 % (+ 3 std) have two groups."""
    rng = np.random.default_rng(1)
    wrong = 0
    for runs in rng.normal(50, 1, (300, 4, 5)):
        groups = rank_groups({str(number): by_seed(run) for number, run in enumerate(runs)})
        wrong += set(groups.values()) != {'a'}
    assert wrong / 300 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


@given(st.dictionaries(st.sampled_from('pqrstuv'), accuracies, min_size=1))
def test_every_method_has_a_group(values):
    results = {method: by_seed(of) for method, of in values.items()}
    groups = rank_groups(results)
    assert groups.keys() == results.keys() and all(groups.values())
    best = max(results, key=lambda method: np.mean(list(results[method].values())))
    assert 'a' in groups[best]
