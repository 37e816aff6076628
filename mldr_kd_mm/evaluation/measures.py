"""What is measured of a student beside its accuracy; all in numpy, on N samples and C classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mldr_kd_mm.utils.errors import ConfigError, check_positive

Array = NDArray[np.floating]
Labels = NDArray[np.integer]


def softmax(logits: Array, axis: int = -1) -> Array:
    """The softmax in float64, over the classes unless another axis is given."""
    logits = np.asarray(logits, np.float64)
    exponentials = np.exp(logits - logits.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def agreement(a: Array, b: Array) -> float:
    """The part of the samples for which two models name the same class.

    Args:
        a: Logits (N, C).
        b: Logits (N, C) of the other.

    Returns:
        Between 0 and 1.
    """
    _check_same_shape(a, b)
    return float((a.argmax(1) == b.argmax(1)).mean())


class Reliability(NamedTuple):
    """Samples sorted by confidence, the probability of the class that the model names, into bins.

    Of an empty bin, confidence and accuracy are NaN.
    """

    confidence: Array
    """(bins,): the mean confidence."""
    accuracy: Array
    """(bins,): the part that is right."""
    count: Labels
    """(bins,): the number of samples."""


def reliability(probabilities: Array, labels: Labels, bins: int = 15) -> Reliability:
    """How often a model is right where it is how sure.

    Args:
        probabilities: (N, C), each row with the sum 1.
        labels: The true classes (N,).
        bins: Number of bins of equal width between 0 and 1; a bin has its upper edge.

    Returns:
        The bins, from the least confidence to the highest.
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


def expected_calibration_error(probabilities: Array, labels: Labels, bins: int = 15) -> float:
    """The mean distance between confidence and accuracy of the bins, weighted by their samples.

    Source: On Calibration of Modern Neural Networks (arXiv 1706.04599), equation 3.

    Args:
        probabilities: (N, C), each row with the sum 1.
        labels: The true classes (N,).
        bins: See :func:`reliability`.

    Returns:
        Between 0, of a model that is right as often as it says, and 1.
    """
    of_bin = reliability(probabilities, labels, bins)
    distances = np.abs(of_bin.confidence - of_bin.accuracy)
    return float(np.nansum(distances * of_bin.count) / len(labels))


def linear_cka(x: Array, y: Array) -> float:
    """How alike two representations of the same samples are, whatever their axes are.

    Rotating or scaling one of them changes nothing. The estimator of HSIC is the unbiased one, so
    that unrelated features are near 0, a little below it too, even where there are fewer samples
    than channels.

    Source: Similarity of Neural Network Representations Revisited (arXiv 1905.00414); unbiased as
    in Do Wide and Deep Networks Learn the Same Things? (arXiv 2010.15327), equation 3, over all
    samples at once.

    Args:
        x: Features (N, D) of N >= 4 samples.
        y: Features (N, E).

    Returns:
        1 where they are equal; 0 where one of them is the same for all samples.

    Raises:
        ConfigError: For fewer samples, or another number of them in the two.
    """
    if len(x) != len(y) or len(x) < 4:
        raise ConfigError(
            f'linear_cka: {len(x)} and {len(y)} samples: must be the same number, 4 or more'
        )
    grams = [_gram(features) for features in (x, y)]
    own = [_hsic(gram, gram) for gram in grams]
    if min(own) <= 0:
        return 0.0
    return float(_hsic(*grams) / np.sqrt(own[0] * own[1]))


def _gram(features: Array) -> Array:
    """The products of centred features, 0 on the diagonal and of size 1 at most."""
    centred = np.asarray(features, np.float64) - np.mean(features, 0, dtype=np.float64)
    largest = np.abs(centred).max(initial=0)
    # Rounding leaves a trace of what is the same for all samples.
    if largest <= 1e-12 * np.abs(features).max(initial=0):
        return np.zeros((len(features), len(features)))
    centred /= largest
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0)
    return gram


def _hsic(a: Array, b: Array) -> float:
    """The unbiased estimator, without a factor that the ratio does not keep; diagonals are 0."""
    n = len(a)
    return (
        (a * b).sum()
        + a.sum() * b.sum() / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (a.sum(0) * b.sum(0)).sum()
    )


def class_relation(logits: Array, classes: Sequence[int] | None = None) -> Array:
    r"""The mean over the samples of the class relation that DFRA aligns.

    Of logits z its entry (i, j) is the softmax over i of :math:`C^{-1/2} z_i z_j`, as in
    :class:`mldr_kd_mm.models.losses.DFRALoss` at temperature 1.

    Args:
        logits: (N, C).
        classes: The M classes whose rows and columns are wanted. None: all of them. The softmax is
            over all classes in either case.

    Returns:
        (M, M); with all classes each column has the sum 1.
    """
    logits = np.asarray(logits, np.float64)
    classes = np.arange(logits.shape[1]) if classes is None else np.asarray(classes)
    total = np.zeros((len(classes), len(classes)))
    for row in logits * logits.shape[1] ** -0.25:
        total += softmax(np.outer(row, row[classes]), axis=0)[classes]
    return total / len(logits)


class ConfusedPair(NamedTuple):
    """How often samples of one class are taken for another, by two models."""

    true: int
    named: int
    before: int
    after: int


def confusion_matrix(labels: Labels, named: Labels, num_classes: int) -> Labels:
    """How many samples of class i are named j: (C, C)."""
    pairs = np.bincount(labels * num_classes + named, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def changed_pairs(
    labels: Labels, before: Labels, after: Labels, num_classes: int
) -> tuple[list[ConfusedPair], list[ConfusedPair]]:
    """The pairs of classes that one model confuses more often than another.

    Args:
        labels: The true classes (N,).
        before: The classes that the first model names (N,).
        after: Those that the second names (N,).
        num_classes: C.

    Returns:
        The pairs that the second model confuses less often, and those it confuses more often, the
        largest change first.
    """
    counts = [confusion_matrix(labels, named, num_classes) for named in (before, after)]
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
        raise ConfigError(f'logits: {a.shape} and {b.shape}: must be of the same samples')
