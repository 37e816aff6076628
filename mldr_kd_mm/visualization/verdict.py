"""Verdict of a report: whether distillation helped each student."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from mldr_kd_mm.evaluation.measures import mean_and_std
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.visualization.series import Series, alone, data_set, other_fields


def verdict(series: Sequence[Series]) -> list[str]:
    """Judge each distilled student against the same student alone and its teacher.

    Args:
        series: The series of a report.

    Returns:
        One sentence for each, and one if their data sets differ.
    """
    lines = []
    sets = {each.name: data_set(each.run) for each in series}
    if len(set(sets.values())) > 1:
        of_runs = '; '.join(f'{name}: {described}' for name, described in sets.items())
        lines.append(
            'The runs validate on different images, so their accuracies are not compared across '
            f'them: {of_runs}.'
        )
    lines += [_judge(each, alone(each, series)) for each in series if each.run.has_teacher]
    if not any(each.run.has_teacher for each in series):
        lines.append('No run has a teacher; the report shows what they learned without one.')
    return lines


def gain(series: Series, baseline: Series | None) -> float | None:
    """Return the points by which a student is above the same student alone; None if unknown."""
    if baseline is None or not (series.last_accuracies() and baseline.last_accuracies()):
        return None
    return statistics.fmean(series.last_accuracies()) - statistics.fmean(baseline.last_accuracies())


def closed(series: Series, baseline: Series | None) -> float | None:
    """Return the percentage of the teacher's lead over the student alone that was gained.

    None if it is unknown, or if the teacher has no lead.
    """
    points, teacher = gain(series, baseline), series.teacher_accuracy()
    if points is None or teacher is None:
        return None
    lead = teacher - statistics.fmean(baseline.last_accuracies())
    return 100 * points / lead if lead > 0 else None


def _judge(series: Series, baseline: Series | None) -> str:
    accuracies = series.last_accuracies()
    if not accuracies:
        return f'{series.name}: no accuracy was logged.'
    parts = [f'{mean_and_std(accuracies)} %']
    points, share, teacher = (
        gain(series, baseline),
        closed(series, baseline),
        series.teacher_accuracy(),
    )
    if points is not None:
        fields = other_fields(series, baseline)
        remark = f', which was trained with another {" and ".join(fields)}' if fields else ''
        parts.append(f'{points:+.1f} points over the student alone{remark}')
    if share is not None:
        parts.append(f"{share:.0f} % of the teacher's lead")
    if teacher is not None:
        parts.append(f'teacher {teacher:.1f} %')
    if points is None:
        word = 'no run of the student alone to compare with'
    elif len(epochs := series.last_epochs() | baseline.last_epochs()) > 1:
        listed = ' and '.join(f'{epoch:g}' for epoch in sorted(epochs))
        word = f'not judged, as the runs end with different epochs, {listed}'
    else:
        word = _word(points, [_standard_error(each) for each in (series, baseline)])
    return f'{series.name}: {word}. {", ".join(parts)}.'


def _word(points: float, errors: Sequence[float | None]) -> str:
    if None in errors:
        return 'not judged, as the number of validation images is unknown'
    error = math.hypot(*errors)
    if abs(points) <= 2 * error:
        return f'no clear difference, at a standard error of {error:.1f} points'
    return 'distillation helps' if points > 0 else 'distillation hurts'


def _standard_error(series: Series) -> float | None:
    """Return the standard error of the mean accuracy in points, the larger of seeds and images.

    A few seeds can have equal accuracies by chance. None if there is one seed and the number of
    images is unknown.
    """
    accuracies = series.last_accuracies()
    errors = []
    if len(accuracies) > 1:
        errors.append(statistics.stdev(accuracies) / math.sqrt(len(accuracies)))
    if series.first.images:
        share = min(max(statistics.fmean(accuracies) / 100, 0), 1)
        errors.append(100 * math.sqrt(share * (1 - share) / series.first.images))
    return max(errors, default=None)


def describe_data(series: Sequence[Series]) -> str:
    """Return the data sets and their numbers of images."""
    sets = {}
    for each in series:
        count = each.first.images
        sets[data_set(each.run)] = f', {plural(f"{count:,}", "image")}' if count else ''
    return '; '.join(f'{name}{count}' for name, count in sets.items())
