"""Comparison of methods that were trained with the same seeds."""

from __future__ import annotations

import math
import string
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from mldr_kd_mm.utils.errors import ConfigError

CONFIDENCE = 0.95
"""Confidence level of the intervals; 1 minus it is the error rate of the rank groups."""

Values = Mapping[Hashable, float]


class Difference(NamedTuple):
    """Mean paired difference of two methods.

    Attributes:
        mean: Mean of the per-seed differences.
        low: Lower end of its confidence interval; NaN if the spread of the differences is unknown.
        high: Upper end; NaN if the spread is unknown.
        p_value: Two-sided p-value of the hypothesis that the mean is 0; NaN if the spread is
            unknown.
        count: Number of seeds that both methods have.
    """

    mean: float
    low: float
    high: float
    p_value: float
    count: int

    @property
    def is_significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Return ``+1.50 [+0.26, +2.74]``, or the mean alone without an interval."""
        interval = '' if math.isnan(self.low) else f' [{self.low:+.2f}, {self.high:+.2f}]'
        return f'{self.mean:+.2f}{interval}'


def paired_difference(
    values: Values, reference: Values, confidence: float = CONFIDENCE
) -> Difference | None:
    """Compare two methods by their differences on the same seeds, with Student's t-distribution.

    The differences are assumed to be independent and normal. With one seed, or if all differences
    are equal but not 0, which rounded accuracies of a few seeds can be by chance, their spread is
    unknown.

    Args:
        values: Seed -> result of the method.
        reference: Seed -> result of the method to compare with.
        confidence: Confidence level of the interval, between 0 and 1.

    Returns:
        The difference ``values - reference``; None if they share no seed.

    Raises:
        ConfigError: ``confidence`` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f'confidence={confidence!r}: must be between 0 and 1')
    differences = np.array([values[seed] - reference[seed] for seed in values if seed in reference])
    count = len(differences)
    if count == 0:
        return None
    mean = float(differences.mean())
    # Rounding errors of equal differences are not a spread.
    if np.allclose(differences, mean, rtol=1e-9, atol=1e-12):
        if count > 1 and abs(mean) < 1e-12:
            return Difference(mean, mean, mean, 1.0, count)
        return Difference(mean, np.nan, np.nan, np.nan, count)
    error = stats.sem(differences)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * error)
    p_value = float(2 * stats.t.sf(abs(mean) / error, count - 1))
    return Difference(mean, mean - half, mean + half, p_value, count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests by Holm's method, in their order.

    With the adjusted values, the probability of one or more false rejections among all tests is at
    most the threshold. Source: A Simple Sequentially Rejective Multiple Test Procedure (Holm 1979).

    Args:
        p_values: P-values of all tests.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def rank_groups(results: Mapping[str, Values]) -> dict[str, str]:
    """Give methods without a significant difference a common letter.

    Two methods differ significantly if the paired t-test of their common seeds, adjusted for the
    number of pairs by Holm's method, has a p-value of at most 0.05. Two methods whose p-value is
    unknown never differ significantly.

    Args:
        results: Method -> seed -> result.

    Returns:
        Method -> its letters, where ``a`` is the group with the highest mean: ``a``, ``ab``, ``b``.
    """
    order = sorted(results, key=lambda method: -np.mean(list(results[method].values())))
    tests = {}
    for pair in combinations(order, 2):
        difference = paired_difference(*(results[method] for method in pair))
        if difference is not None and not math.isnan(difference.p_value):
            tests[pair] = difference.p_value
    adjusted = zip(tests, holm(list(tests.values())), strict=True)
    # Exact on the edge: 1 - 0.95 is slightly above 0.05.
    differ = [pair for pair, p_value in adjusted if p_value <= round(1 - CONFIDENCE, 9)]
    groups = _groups(order, differ)
    letters = [_letter(number) for number in range(len(groups))]
    return {
        method: ''.join(
            letter for letter, group in zip(letters, groups, strict=True) if method in group
        )
        for method in results
    }


def _groups(methods: Sequence[str], differ: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Return the largest sets of methods without a differing pair, from the best to the worst."""
    groups = [set(methods)]
    for a, b in differ:
        both = [group for group in groups if {a, b} <= group]
        parts = [group for group in groups if group not in both]
        parts += [group - {method} for group in both for method in (a, b)]
        groups = [
            part
            for place, part in enumerate(parts)
            if not any(part < other for other in parts) and part not in parts[:place]
        ]
    return sorted(groups, key=lambda group: [methods.index(m) for m in methods if m in group])


def _letter(number: int) -> str:
    """Return the letter of a group: a to z, then a1, b1 and so on."""
    turn, place = divmod(number, len(string.ascii_lowercase))
    return f'{string.ascii_lowercase[place]}{turn or ""}'
