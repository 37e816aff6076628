"""Measures of predictions beyond accuracy, in NumPy, for N samples and C classes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mldr_kd_mm.utils.errors import ConfigError, check_positive

Array = NDArray[np.floating]
Labels = NDArray[np.integer]


def softmax(logits: Array, axis: int = -1) -> Array:
    """Return the softmax in float64.

    Args:
        logits: Logits, (N, C) by default.
        axis: Axis of the classes.
    """
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def agreement(a: Array, b: Array) -> float:
    """Return the share of samples for which two models predict the same class, from 0 to 1.

    Args:
        a: Logits (N, C) of the first model.
        b: Logits (N, C) of the second model.

    Raises:
        ConfigError: The shapes differ.
    """
    _check_same_shape(a, b)
    return float((a.argmax(1) == b.argmax(1)).mean())


class Reliability(NamedTuple):
    """Accuracy per confidence bin. Confidence is the probability of the predicted class.

    Attributes:
        confidence: Mean confidence (bins,); NaN for an empty bin.
        accuracy: Accuracy (bins,), from 0 to 1; NaN for an empty bin.
        count: Number of samples (bins,).
    """

    confidence: Array
    accuracy: Array
    count: Labels


def reliability(probabilities: Array, labels: Labels, bins: int = 15) -> Reliability:
    """Compute the accuracy per confidence bin.

    Args:
        probabilities: Probabilities (N, C); each row sums to 1.
        labels: True classes (N,).
        bins: Number of bins of equal width between 0 and 1. A bin includes its upper edge.

    Returns:
        The bins, from low to high confidence.
    """
    check_positive(bins=bins)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    some = np.where(count == 0, np.nan, count)
    return Reliability(
        np.bincount(number, confidence, minlength=bins) / some,
        np.bincount(number, right, minlength=bins) / some,
        count,
    )


def merge_sparse(bins: Reliability, least: int) -> Reliability:
    """Merge neighbouring bins until each has enough samples.

    Args:
        bins: Bins from low to high confidence.
        least: Minimum number of samples per bin; with fewer samples in total, one bin is left.

    Returns:
        The merged bins, none of which is empty.
    """
    groups: list[list[int]] = [[]]
    for number in np.flatnonzero(bins.count):
        if bins.count[groups[-1]].sum() >= least:
            groups.append([])
        groups[-1].append(int(number))
    if len(groups) > 1 and bins.count[groups[-1]].sum() < least:
        groups[-2:] = [groups[-2] + groups[-1]]
    weights = [bins.count[group] for group in groups]

    def averages(values: Array) -> Array:
        pairs = zip(groups, weights, strict=True)
        return np.array([np.average(values[group], weights=count) for group, count in pairs])

    count = np.array([count.sum() for count in weights])
    return Reliability(averages(bins.confidence), averages(bins.accuracy), count)


def class_accuracies(labels: Labels, predicted: Labels, num_classes: int) -> Array:
    """Return the accuracy on each class, from 0 to 1; NaN for a class without samples.

    Args:
        labels: True classes (N,).
        predicted: Predicted classes (N,).
        num_classes: Number of classes C.

    Returns:
        Accuracies (C,).
    """
    count = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[labels == predicted], minlength=num_classes)
    return right / np.where(count == 0, np.nan, count)


def expected_calibration_error(probabilities: Array, labels: Labels, bins: int = 15) -> float:
    """Return the expected calibration error, from 0 (calibrated) to 1.

    It is the mean distance between confidence and accuracy of the bins, weighted by their numbers
    of samples. Source: On Calibration of Modern Neural Networks (arXiv 1706.04599), equation 3.

    Args:
        probabilities: Probabilities (N, C); each row sums to 1.
        labels: True classes (N,).
        bins: Number of bins, see :func:`reliability`.
    """
    of_bin = reliability(probabilities, labels, bins)
    distances = np.abs(of_bin.confidence - of_bin.accuracy)
    return float(np.nansum(distances * of_bin.count) / len(labels))


def linear_cka(x: Array, y: Array) -> float:
    """Return the linear CKA, a similarity of two representations of the same samples.

    It does not change when one of them is rotated or scaled. HSIC is estimated without bias, so
    unrelated features are near 0 (or slightly below), even with fewer samples than channels.

    Source: Similarity of Neural Network Representations Revisited (arXiv 1905.00414); the unbiased
    estimator is that of Do Wide and Deep Networks Learn the Same Things? (arXiv 2010.15327),
    equation 3, computed on all samples at once.

    Args:
        x: Features (N, D), N >= 4.
        y: Features (N, E).

    Returns:
        1 for equal features; 0 if one of them is the same for all samples.

    Raises:
        ConfigError: The numbers of samples differ or are below 4.
    """
    if len(x) != len(y) or len(x) < 4:
        raise ConfigError(
            f'linear_cka: {len(x)} and {len(y)} samples; must be the same number, 4 or more'
        )
    grams = [_gram(features) for features in (x, y)]
    own = [_hsic(gram, gram) for gram in grams]
    if min(own) <= 0:
        return 0.0
    return float(_hsic(*grams) / np.sqrt(own[0] * own[1]))


def _gram(features: Array) -> Array:
    """Return the Gram matrix of centred and scaled features, with a diagonal of zeros."""
    centred = np.asarray(features, np.float64) - np.mean(features, 0, dtype=np.float64)
    largest = np.abs(centred).max(initial=0)
    # Features that are the same for all samples leave rounding errors.
    if largest <= 1e-12 * np.abs(features).max(initial=0):
        return np.zeros((len(features), len(features)))
    centred /= largest
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(a: Array, b: Array) -> float:
    """Return the unbiased HSIC of Gram matrices with zero diagonals, up to a constant factor."""
    n = len(a)
    return (
        (a * b).sum()
        + a.sum() * b.sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (a.sum(0) * b.sum(0)).sum()
    )


def class_relation(logits: Array, classes: Sequence[int] | None = None) -> Array:
    r"""Return the class relation that DFRA aligns, averaged over the samples.

    For logits z, entry (i, j) is the softmax over i of :math:`C^{-1/2} z_i z_j`, as in
    :class:`mldr_kd_mm.models.losses.DFRALoss` at temperature 1.

    Args:
        logits: Logits (N, C).
        classes: Indices of the M rows and columns to return. None: all. The softmax is over all
            classes in either case.

    Returns:
        Relation (M, M). With all classes each column sums to 1.
    """
    logits = np.asarray(logits, np.float64)
    classes = np.arange(logits.shape[1]) if classes is None else np.asarray(classes)
    total = np.zeros((len(classes), len(classes)))
    for row in logits * logits.shape[1] ** -0.25:
        total += softmax(np.outer(row, row[classes]), axis=0)[classes]
    return total / len(logits)


class ConfusedPair(NamedTuple):
    """Number of samples of one class that two models take for another class.

    Attributes:
        true: The true class.
        predicted: The predicted class.
        before: Number of samples for the first model.
        after: Number of samples for the second model.
    """

    true: int
    predicted: int
    before: int
    after: int


def confusion_matrix(labels: Labels, predicted: Labels, num_classes: int) -> Labels:
    """Count the samples of class i that are predicted as class j.

    Args:
        labels: True classes (N,).
        predicted: Predicted classes (N,).
        num_classes: Number of classes C.

    Returns:
        Counts (C, C).
    """
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def changed_pairs(
    labels: Labels, before: Labels, after: Labels, num_classes: int
) -> tuple[list[ConfusedPair], list[ConfusedPair]]:
    """Find the pairs of classes that two models confuse at different rates.

    Args:
        labels: True classes (N,).
        before: Classes (N,) predicted by the first model.
        after: Classes (N,) predicted by the second model.
        num_classes: Number of classes C.

    Returns:
        The pairs that the second model confuses less often, and the pairs that it confuses more
        often, with the largest changes first.
    """
    counts = [confusion_matrix(labels, classes, num_classes) for classes in (before, after)]
    change = counts[1] - counts[0]
    np.fill_diagonal(change, 0)

    def largest(change: Labels) -> list[ConfusedPair]:
        changed = np.flatnonzero(change > 0)
        order = changed[np.argsort(-change.flat[changed], kind='stable')]
        places = [divmod(int(place), num_classes) for place in order]
        return [ConfusedPair(*pair, *(int(count[pair]) for count in counts)) for pair in places]

    return largest(-change), largest(change)


def _check_same_shape(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ConfigError(f'logits: {a.shape} and {b.shape}; must have the same shape')


def mean_and_std(values: Sequence[float], form: str = '.2f') -> str:
    """Return ``87.50 ± 0.50``, or the value alone if there is one.

    Args:
        values: One value per run.
        form: Format of the numbers; a sign in it applies to the mean.
    """
    mean = format(statistics.mean(values), form)
    return f'{mean} ± {statistics.stdev(values):{form.lstrip("+")}}' if len(values) > 1 else mean
