"""Figures of a student's and its teacher's predictions, for the report and during training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mldr_kd_mm.evaluation.measures import (
    class_relation,
    expected_calibration_error,
    linear_cka,
    reliability,
    softmax,
)
from mldr_kd_mm.evaluation.observer import Observations
from mldr_kd_mm.visualization import figures
from mldr_kd_mm.visualization.page import Picture

MOST_CLASSES = 100
"""Largest number of classes in a class matrix."""
_CKA_SAMPLES = 1000


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
    """Return the class names of a data set, or their numbers if it has no names.

    Args:
        dataset: Data set of the samples.
        count: Number of classes of the models.
    """
    known = list(dataset.metainfo.get('classes') or ())
    return known if len(known) == count else [str(number) for number in range(count)]


def fusion_by_class(seen: Observations, classes: Sequence[str], run: str = '') -> list[Picture]:
    """Draw the neck's fusion weights per class.

    Args:
        seen: Outputs of the models.
        classes: Names of the classes.
        run: Name of the run, for the titles.

    Returns:
        One figure, or none if there is no neck.
    """
    weights = seen.fusion_weights
    if weights is None:
        return []
    title = _titled(f'Weight − 1/{len(weights)}', run)
    figure = figures.draw_fusion_by_class(weights, title, classes)
    return [Picture('fusion_by_class', _alt('Fusion weight of each stage by class', run), figure)]


def relations(seen: Observations, classes: Sequence[str], run: str = '') -> list[Picture]:
    """Draw the class relations of teacher and student, and the differences of the student's heads.

    Args:
        seen: Outputs of the models.
        classes: Names of the classes.
        run: Name of the run, for the titles.

    Returns:
        The figures, or none without a teacher.
    """
    return [
        Picture(
            'relation_' + what.lower().replace(' − ', '_minus_').replace(' ', '_'),
            _alt(f'Class relation: {what.lower()}', run),
            figures.draw_relation(values, _titled(what, run), names, limit, signed='−' in what),
        )
        for what, values, limit, names in _relations(seen, classes)
    ]


def _relations(
    seen: Observations, classes: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, float, list[str]]]:
    """Yield title, matrix, value of the full colour and class names of each figure."""
    if seen.teacher is None:
        return
    chosen = _spread(seen.student.shape[1], MOST_CLASSES)
    names = [classes[index] for index in chosen]
    heads = dict(Teacher=seen.teacher, Student=seen.student)
    if seen.fused is not None:
        heads['Fused head'] = seen.fused
    of = {head: class_relation(logits, chosen) for head, logits in heads.items()}
    limit = max(float(relation.max()) for relation in of.values())
    yield 'Teacher', of['Teacher'], limit, names
    yield 'Student', of['Student'], limit, names
    differences = {head: of[head] - of['Teacher'] for head in list(of)[1:]}
    limit = max(float(np.abs(values).max()) for values in differences.values()) or 1.0
    for head, values in differences.items():
        yield f'{head} − teacher', values, limit, names


def calibration(seen: Observations, run: str = '') -> list[Picture]:
    """Draw the reliability diagram of student, fused head and teacher, as far as they exist.

    Args:
        seen: Outputs of the models.
        run: Name of the run, for the title.

    Returns:
        One figure.
    """
    heads = {'student': seen.student, 'teacher': seen.teacher, 'fused head': seen.fused}
    bins = {}
    for head, logits in heads.items():
        if logits is not None:
            probabilities = softmax(logits)
            error = expected_calibration_error(probabilities, seen.labels)
            bins[f'{head}, ECE {100 * error:.1f} %'] = reliability(probabilities, seen.labels)
    figure = figures.draw_reliability(bins, _titled('Calibration', run))
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


def _spread(count: int, most: int) -> np.ndarray:
    """Return at most ``most`` indices of ``range(count)``, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _titled(what: str, run: str) -> str:
    return f'{what} · {run}' if run else what


def _alt(what: str, run: str) -> str:
    return f'{what}, run {run}' if run else what
