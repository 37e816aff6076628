"""Figures of a student's and its teacher's predictions, for the report and during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from mldr_kd_mm.evaluation.measures import (
    class_relation,
    expected_calibration_error,
    linear_cka,
    merge_sparse,
    reliability,
    softmax,
)
from mldr_kd_mm.evaluation.observer import Observations
from mldr_kd_mm.utils.errors import printable
from mldr_kd_mm.visualization import figures
from mldr_kd_mm.visualization.page import Picture
from mldr_kd_mm.visualization.style import COLORS, INK

MOST_CLASSES = 100
"""Largest number of classes in a class matrix."""
_CKA_SAMPLES = 1000
_MAP_SAMPLES, _LEAST_MAPPED = 500, 30


def pictures_of(seen: Observations, classes: Sequence[str]) -> list[Picture]:
    """Draw all figures of this module.

    Args:
        seen: Outputs of the models.
        classes: Names of the classes.

    Returns:
        The figures.
    """
    return [
        *fusion_by_class(seen, classes),
        *relations(seen, classes),
        *calibration(seen),
        *similarity(seen),
    ]


def class_names(dataset: Any, count: int) -> list[str]:
    """Return the class names of a data set as printable text, or numbers if it has no names.

    Args:
        dataset: Data set of the samples.
        count: Number of classes of the models.
    """
    known = [printable(name) for name in dataset.metainfo.get('classes') or ()]
    return known if len(known) == count else [str(number) for number in range(count)]


def fusion_by_class(
    seen: Observations, classes: Sequence[str], run: str = '', limit: float | None = None
) -> list[Picture]:
    """Draw the neck's fusion weights per class.

    Args:
        seen: Outputs of the models.
        classes: Names of the classes.
        run: Name of the run, for the titles.
        limit: Difference with the full colour. None: the largest.

    Returns:
        One figure, or none if there is no neck.
    """
    weights = seen.fusion_weights
    if weights is None:
        return []
    title = _titled(f'Weight − 1/{len(weights)}', run)
    figure = figures.draw_fusion_by_class(weights, title, classes, limit)
    return [Picture('fusion_by_class', _alt('Fusion weight of each stage by class', run), figure)]


def relations(
    seen: Observations,
    classes: Sequence[str],
    run: str = '',
    limits: tuple[float, float] | None = None,
) -> list[Picture]:
    """Draw the class relations of teacher and student, and the differences of the student's heads.

    Args:
        seen: Outputs of the models.
        classes: Names of the classes.
        run: Name of the run, for the titles.
        limits: Values of the full colour, see :func:`relation_limits`. None: those of ``seen``.

    Returns:
        The figures, or none without a teacher.
    """
    return [
        Picture(
            'relation_' + what.lower().replace(' − ', '_minus_').replace(' ', '_'),
            _alt(f'Class relation: {what.lower()}', run),
            figures.draw_relation(values, _titled(what, run), names, limit, signed='−' in what),
        )
        for what, values, limit, names in _relations(seen, classes, limits)
    ]


def relation_limits(seen: Observations) -> tuple[float, float]:
    """Return the largest class relation of any head, and the largest difference from the teacher.

    Args:
        seen: Outputs of the models, with those of a teacher.
    """
    of = _relations_by_head(seen)
    differences = [np.abs(values - of['Teacher']).max() for values in [*of.values()][1:]]
    return max(float(values.max()) for values in of.values()), float(max(differences)) or 1.0


def _relations_by_head(seen: Observations) -> dict[str, np.ndarray]:
    chosen = _spread(seen.student.shape[1], MOST_CLASSES)
    heads = dict(Teacher=seen.teacher, Student=seen.student)
    if seen.fused is not None:
        heads['Fused head'] = seen.fused
    return {head: class_relation(logits, chosen) for head, logits in heads.items()}


def _relations(
    seen: Observations, classes: Sequence[str], limits: tuple[float, float] | None
) -> Iterator[tuple[str, np.ndarray, float, list[str]]]:
    """Yield title, matrix, value of the full colour and class names of each figure."""
    if seen.teacher is None:
        return
    names = [classes[index] for index in _spread(seen.student.shape[1], MOST_CLASSES)]
    of = _relations_by_head(seen)
    limit, largest_difference = limits or relation_limits(seen)
    yield 'Teacher', of['Teacher'], limit, names
    yield 'Student', of['Student'], limit, names
    for head in list(of)[1:]:
        yield f'{head} − teacher', of[head] - of['Teacher'], largest_difference, names


def calibration(seen: Observations, run: str = '', color: str = COLORS[0]) -> list[Picture]:
    """Draw the reliability diagram of student, fused head and teacher, as far as they exist.

    Args:
        seen: Outputs of the models.
        run: Name of the run, for the title.
        color: Colour of the run.

    Returns:
        One figure. Neighbouring bins with less than 2 % of the samples are merged.
    """
    of_head = {
        'student': dict(color=color),
        'teacher': dict(color=INK, linestyle=':'),
        'fused head': dict(color=color, linestyle='--'),
    }
    heads = {'student': seen.student, 'teacher': seen.teacher, 'fused head': seen.fused}
    bins, styles, least = {}, [], max(len(seen.labels) // 50, 5)
    for head, logits in heads.items():
        if logits is not None:
            probabilities = softmax(logits)
            error = expected_calibration_error(probabilities, seen.labels)
            of_model = merge_sparse(reliability(probabilities, seen.labels), least)
            bins[f'{head}, ECE {100 * error:.1f} %'] = of_model
            styles.append(of_head[head])
    figure = figures.draw_reliability(bins, _titled('Calibration', run), styles)
    alt = _alt(f'Accuracy over confidence: {"; ".join(bins)}', run)
    return [Picture('calibration', alt, figure)]


def similarity(seen: Observations, run: str = '') -> list[Picture]:
    """Draw the CKA between the stages of teacher and student.

    Args:
        seen: Outputs of the models. At most 1,000 samples are used, evenly spaced.
        run: Name of the run, for the title.

    Returns:
        One figure, or none if a model has no stages or there are fewer than 4 samples.
    """
    teacher, student = seen.teacher_stages, seen.student_stages
    if not (teacher and student) or len(seen.labels) < 4:
        return []
    chosen = _spread(len(seen.labels), _CKA_SAMPLES)
    values = [
        [linear_cka(of_teacher[chosen], of_student[chosen]) for of_student in student.values()]
        for of_teacher in teacher.values()
    ]
    title = _titled('CKA', run)
    figure = figures.draw_cka(np.array(values), title, list(teacher), list(student))
    return [Picture('cka', _alt('CKA of the stages of teacher and student', run), figure)]


def feature_maps(seen: Observations, classes: Sequence[str], run: str = '') -> list[Picture]:
    """Draw t-SNE maps of the last stage's features of teacher and student.

    Args:
        seen: Outputs of the models. At most 500 samples of 16 classes are used, evenly spaced.
        classes: Names of the classes.
        run: Name of the run, for the titles.

    Returns:
        One figure per model that has stages; none without scikit-learn or with under 30 samples.
    """
    if find_spec('sklearn') is None:
        return []
    kept = _spread(len(classes), figures.MOST_MAPPED)
    chosen = np.flatnonzero(np.isin(seen.labels, kept))
    chosen = chosen[_spread(len(chosen), _MAP_SAMPLES)]
    if len(chosen) < _LEAST_MAPPED:
        return []
    labels = np.searchsorted(kept, seen.labels[chosen])
    names = [classes[index] for index in kept]
    last = {
        # Of several teachers, the stages are teacher1.stage1, ...
        (name.rpartition('.')[0].capitalize() or side): feature
        for side, stages in dict(Teacher=seen.teacher_stages, Student=seen.student_stages).items()
        for name, feature in stages.items()
    }
    return [
        Picture(
            f'map_{side.lower()}',
            _alt(f'Map of the features of the {side.lower()} by class', run),
            figures.draw_map(_embed(feature[chosen]), labels, _titled(side, run), names),
        )
        for side, feature in last.items()
    ]


def _embed(features: np.ndarray) -> np.ndarray:
    """Return the positions (N, 2) of features (N, D) on a t-SNE map."""
    from sklearn.manifold import TSNE

    perplexity = min(30, (len(features) - 1) // 3)
    return TSNE(perplexity=perplexity, init='pca', random_state=0).fit_transform(features)


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` indices of ``range(count)``, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _titled(what: str, run: str) -> str:
    return f'{what} · {run}' if run else what


def _alt(what: str, run: str) -> str:
    return f'{what}, run {run}' if run else what
