"""Measures compared with values computed by hand, and properties that hold for any input."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mldr_kd_mm.evaluation.measures import (
    Reliability,
    agreement,
    changed_pairs,
    class_accuracies,
    class_relation,
    confusion_matrix,
    expected_calibration_error,
    linear_cka,
    merge_sparse,
    reliability,
    softmax,
)
from mldr_kd_mm.utils.errors import ConfigError

PROBABILITIES = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
LABELS = np.array([0, 1, 1, 0])
LOGITS = arrays(np.float64, (12, 5), elements=st.floats(-20, 20))
many = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
CLASSES = arrays(np.int64, 12, elements=st.integers(0, 4))


def test_softmax_is_over_the_classes():
    logits = np.log([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert softmax(logits) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5], [0.75, 0.25]]))
    columns = np.array([[1 / 6, 3 / 6], [2 / 6, 2 / 6], [3 / 6, 1 / 6]])
    assert softmax(logits, axis=0) == pytest.approx(columns)


def test_calibration_by_hand():
    # Two bins: none up to 0.5, all four above it, with mean confidence 0.75 and two correct.
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=2) == pytest.approx(0.25)
    # Five bins: (0.6] is wrong, (0.7, 0.8] right and wrong, (0.9] right.
    by_hand = (0.6 + 2 * abs(0.75 - 0.5) + 0.1) / 4
    assert expected_calibration_error(PROBABILITIES, LABELS, bins=5) == pytest.approx(by_hand)


def test_reliability_by_hand():
    bins = reliability(PROBABILITIES, LABELS, bins=5)
    assert bins.count.tolist() == [0, 0, 1, 2, 1]
    np.testing.assert_allclose(bins.confidence, [np.nan, np.nan, 0.6, 0.75, 0.9])
    np.testing.assert_allclose(bins.accuracy, [np.nan, np.nan, 0, 0.5, 1])


def test_one_who_is_sure_and_right_is_calibrated():
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0
    assert expected_calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


@many
@given(logits=LOGITS, labels=CLASSES, bins=st.integers(1, 20))
def test_calibration_of_any_logits(logits, labels, bins):
    probabilities = softmax(logits)
    error = expected_calibration_error(probabilities, labels, bins)
    assert 0 <= error <= 1
    assert reliability(probabilities, labels, bins).count.sum() == 12
    # Merging bins can only lower the error, so it is at least the distance of the overall means.
    overall = probabilities.max(1).mean() - (probabilities.argmax(1) == labels).mean()
    assert error >= abs(overall) - 1e-9


def test_agreement_by_hand():
    a = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]])
    assert agreement(a, a) == 1
    assert agreement(a, a[[0, 2, 1, 3]]) == 0.5
    with pytest.raises(ConfigError, match='must have the same shape'):
        agreement(a, a[:2])


def naive_unbiased_hsic(k, l):  # noqa: E741
    """Return the mean of (k_ij l_ij + k_ij l_qr - 2 k_ij l_iq) over distinct i, j, q, r."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in set(range(n)) - {i}:
            for q in set(range(n)) - {i, j}:
                for r in set(range(n)) - {i, j, q}:
                    total += k[i, j] * l[i, j] + k[i, j] * l[q, r] - 2 * k[i, j] * l[i, q]
                    count += 1
    return total / count


def test_cka_is_its_definition():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(7, 3)), random.normal(size=(7, 4))
    y[:, 0] = x[:, 1]
    k, l = x @ x.T, y @ y.T  # noqa: E741
    expected = naive_unbiased_hsic(k, l) / np.sqrt(
        naive_unbiased_hsic(k, k) * naive_unbiased_hsic(l, l)
    )
    assert linear_cka(x, y) == pytest.approx(expected)


@many
@given(
    x=arrays(np.float64, (8, 3), elements=st.integers(-50, 50)),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 99),
)
def test_cka_ignores_rotation_scale_and_shift(x, scale, shift, seed):
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    y = random.normal(size=(8, 4))
    assert linear_cka(scale * x @ rotation + shift, y) == pytest.approx(linear_cka(x, y), abs=1e-6)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
    assert linear_cka(x, x) in (0.0, pytest.approx(1))


def test_cka_of_unrelated_features_is_near_zero():
    # The biased estimator gives 0.7 here: more channels than samples.
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 50, 100))
    assert abs(linear_cka(x, y)) < 0.1


def test_cka_of_what_never_changes():
    constant = np.full((6, 2), 0.1)
    assert linear_cka(constant, np.random.default_rng(0).normal(size=(6, 2))) == 0


@pytest.mark.parametrize('sizes', [(5, 6), (3, 3)])
def test_cka_refuses_samples(sizes):
    with pytest.raises(ConfigError, match='the same number, 4 or more'):
        linear_cka(*(np.ones((size, 2)) for size in sizes))


@many
@given(logits=LOGITS)
def test_relation_is_that_of_the_loss(logits):
    z = torch.from_numpy(logits)
    expected = (5**-0.5 * z.unsqueeze(2) * z.unsqueeze(1)).softmax(1).mean(0)
    np.testing.assert_allclose(class_relation(logits), expected, atol=1e-12)
    np.testing.assert_allclose(class_relation(logits, [3, 1]), expected[[3, 1]][:, [3, 1]])


def test_pairs_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    before = np.array([1, 1, 0, 1, 1, 2])
    after = np.array([0, 1, 0, 2, 2, 2])
    repaired, made = changed_pairs(labels, before, after, num_classes=3)
    assert repaired == [(0, 1, 2, 1)]
    assert made == [(1, 2, 0, 2)]


@many
@given(labels=CLASSES, before=CLASSES, after=CLASSES)
def test_pairs_sum_up(labels, before, after):
    repaired, made = changed_pairs(labels, before, after, num_classes=5)
    change = sum(pair.after - pair.before for pair in (*repaired, *made))
    assert change == (after != labels).sum() - (before != labels).sum()
    assert all(pair.true != pair.predicted for pair in (*repaired, *made))
    assert confusion_matrix(labels, after, 5).sum() == 12
    assert changed_pairs(labels, after, before, 5)[0] == [
        pair._replace(before=pair.after, after=pair.before) for pair in made
    ]


def test_sparse_bins_are_merged():
    bins = Reliability(
        np.array([np.nan, 0.1, 0.2, 0.3, 0.4, np.nan, 0.9]),
        np.array([np.nan, 0.0, 1.0, 0.5, 0.25, np.nan, 1.0]),
        np.array([0, 1, 3, 10, 12, 0, 2]),
    )
    merged = merge_sparse(bins, 4)
    assert merged.count.tolist() == [4, 10, 14]
    assert np.allclose(merged.accuracy, [0.75, 0.5, (12 * 0.25 + 2) / 14])
    assert np.allclose(merged.confidence, [0.175, 0.3, (12 * 0.4 + 2 * 0.9) / 14])
    everything = merge_sparse(bins, 100)
    assert everything.count.tolist() == [28]
    kept = merge_sparse(bins, 1)
    assert kept.count.tolist() == [1, 3, 10, 12, 2]


def test_accuracy_by_class():
    labels, predicted = np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0])
    values = class_accuracies(labels, predicted, 4)
    assert np.allclose(values, [0.5, np.nan, 2 / 3, np.nan], equal_nan=True)
