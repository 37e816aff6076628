"""The sections of a report, each with figures of all series of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mldr_kd_mm.evaluation.efficiency import Efficiency, describe_machine
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.evaluation.measures import ConfusedPair, changed_pairs, class_accuracies
from mldr_kd_mm.visualization import figures, model_figures
from mldr_kd_mm.visualization.page import Gallery, Picture, Row, Section, Table, Thumbnail
from mldr_kd_mm.visualization.series import Curve, Series, alone, data_set
from mldr_kd_mm.visualization.style import INK

_MOST_PAIRS = 12
_MOST_IMAGES = 12
_MOST_CLASSES = 12  # of the largest gains, and of the largest losses
_UNKNOWN = '–'


def _accuracy(series: Sequence[Series]) -> Section:
    pictures = []
    sets = [*dict.fromkeys(data_set(each.run) for each in series)]
    for number, images in enumerate(sets):
        shown = [each for each in series if data_set(each.run) == images]
        teachers = {each.teacher_accuracy() for each in shown} - {None}
        levels = {f'teacher, {value:.1f} %': value for value in sorted(teachers)}
        title, name = 'Accuracy of the student', 'accuracy'
        if len(sets) > 1:
            title, name = f'{title} · {images}', f'accuracy_{number}'
        pictures += _lines(shown, name, title, ACCURACY, 'top-1 accuracy, %', levels=levels)
    return Section(
        'Accuracy',
        'Top-1 accuracy on the validation set. Runs that differ only in the seed are one line, '
        'their mean, in a band of one standard deviation. Dashed: the teacher on the same samples, '
        'measured before training. The student need not reach the teacher; what matters is how far '
        'it is above the same student trained without a teacher.',
        [pictures],
    )


def _losses(series: Sequence[Series]) -> Section:
    curves = {
        each.name: {name: each.curve(name) for name in each.run.names() if 'loss' in name}
        for each in series
    }
    values = [
        value
        for terms in curves.values()
        for curve in terms.values()
        for value in curve.values()
        if 0 < value < np.inf
    ]
    pictures = []
    for number, (name, terms) in enumerate(curves.items()):
        limits = (0.8 * min(values), 1.25 * max(values)) if values else None
        title = f'Loss terms · {name}'
        pictures += _curves(
            series, f'run{number}_losses', title, terms, 'weighted value', ylim=limits, log=True
        )
    return Section(
        'Losses by term',
        'The terms that the optimizer sums, on one logarithmic scale; loss is their sum and '
        "loss_student compares the student's logits with the labels. Every other term compares one "
        'of its heads or features with the teacher and includes its weight. If distillation does '
        'not help, first look for a term that does not fall or is far larger than the others.',
        [pictures],
    )


def _fusion(series: Sequence[Series]) -> Section:
    seen = [each.seen.fusion_weights for each in series if each.seen]
    above = [np.abs(w - 1 / len(w)).max() for w in seen if w is not None]
    limit = max([0.01, *map(float, above)])
    groups = []
    for number, each in enumerate(series):
        stages = {name[len('fusion_') :]: each.curve(name) for name in each.run.names('fusion_')}
        bands = {
            stage: tuple(
                each.curve(f'observed/fusion_{stage}_{end}') for end in ('lowest', 'highest')
            )
            for stage in stages
        }
        title = f'Fusion weights · {each.name}'
        pictures = _curves(
            series, f'run{number}_fusion', title, stages, 'mean weight', bands=bands, ylim=(0, 1)
        )
        if each.seen:
            drawn = model_figures.fusion_by_class(each.seen, each.classes, each.name, limit)
            pictures += _numbered(number, drawn)
        groups.append(pictures)
    return Section(
        'Fusion weights',
        "Weights of the student's stages in the fused logits. The curves are means over samples "
        'and classes; equal weights mean that the gate has not learnt to choose. The band, logged '
        'by FigureHook, spans the classes with the lowest and the highest weight. The matrices '
        'show the weights of the checkpoint per class: blue is above equal weights, orange below.',
        groups,
    )


def _outcomes(series: Sequence[Series]) -> Section:
    parts = {}
    for each in series:
        seen = each.seen
        if seen is None or seen.teacher is None:
            continue
        student, teacher = (side.argmax(1) for side in (seen.student, seen.teacher))
        right, taught_right = student == seen.labels, teacher == seen.labels
        same = student == teacher
        parts[each.name] = {
            'both right': float((right & same).mean()),
            'only the student right': float((right & ~same).mean()),
            'only the teacher right': float((taught_right & ~same).mean()),
            'the same mistake': float((~right & same).mean()),
            'different mistakes': float((~right & ~taught_right & ~same).mean()),
        }
    alt = 'Share of samples that student and teacher classify correctly, per run'
    pictures = []
    if parts:
        pictures.append(
            Picture('outcomes', alt, figures.draw_outcomes(parts, 'Correct predictions'))
        )
    pictures += _observed(series, 'agreement', 'Agreement in training')
    return Section(
        'Agreement with the teacher',
        'Student and teacher agree if both are right or both make the same mistake. Samples that '
        'only the teacher classifies correctly are what the student can still learn from it. '
        'FigureHook measures the agreement during training on a few batches.',
        [pictures],
    )


def _relations(series: Sequence[Series]) -> Section:
    taught = [each.seen for each in series if each.seen and each.seen.teacher is not None]
    limits = [model_figures.relation_limits(seen) for seen in taught]
    shared = tuple(map(max, zip(*limits, strict=True))) or None
    return Section(
        'Class relations',
        'The class relation that DFRA compares: how strongly the logits of two classes go '
        'together, as a softmax over each column, averaged over the samples, at temperature 1. '
        'In the differences, blue means that the student relates two classes more strongly than '
        'the teacher, orange less; an empty matrix means equal relations. At most '
        f'{model_figures.MOST_CLASSES} classes are drawn, evenly spaced.',
        [
            _numbered(number, model_figures.relations(each.seen, each.classes, each.name, shared))
            for number, each in enumerate(series)
            if each.seen
        ],
    )


def _calibration(series: Sequence[Series]) -> Section:
    return Section(
        'Calibration',
        'Accuracy per confidence bin, 15 bins, of which sparse ones are merged; larger points '
        'stand for more samples. Below the diagonal a model is overconfident, above it '
        'underconfident. ECE, the expected calibration error, is the mean distance from the '
        'diagonal.',
        [
            [
                picture
                for number, each in enumerate(series)
                if each.seen
                for picture in _numbered(
                    number, model_figures.calibration(each.seen, each.name, each.color)
                )
            ]
            + _observed(series, 'student_ece', 'ECE of the student in training')
        ],
    )


def _similarity(series: Sequence[Series]) -> Section:
    return Section(
        'Similarity of the stages',
        'Linear CKA of the pooled features of teacher (rows) and student (columns): 1 for features '
        'that are equal up to rotation and scale, 0 for unrelated features.',
        [
            [
                picture
                for number, each in enumerate(series)
                if each.seen
                for picture in _numbered(number, model_figures.similarity(each.seen, each.name))
            ]
        ],
    )


def _confusions(series: Sequence[Series]) -> Section:
    return Section(
        'Confused pairs',
        'True class → predicted class. Fixed: confusions that are rarer than for the same student '
        'trained without a teacher; new: confusions that are more frequent. If no such run is in '
        'the report, the student is compared with its teacher. The '
        f'{_MOST_PAIRS} largest changes are drawn.',
        [
            _pairs(number, each, _seen_alone(each, series))
            for number, each in enumerate(series)
            if each.seen and each.seen.teacher is not None
        ],
    )


def _pairs(number: int, each: Series, other: Series | None) -> list[Picture]:
    seen = each.seen
    before = seen.teacher if other is None else other.seen.student
    fewer, more = changed_pairs(
        seen.labels, before.argmax(1), seen.student.argmax(1), seen.student.shape[1]
    )
    if other is None:
        kinds = {'fewer than the teacher': fewer, 'more than the teacher': more}
    else:
        kinds = {'fixed': fewer, 'new': more}
    shown = [pair for pairs in kinds.values() for pair in pairs[:_MOST_PAIRS]]
    limit = max((max(pair.before, pair.after) for pair in shown), default=1)
    first = ('teacher', INK) if other is None else (other.name, other.color)

    def draw(kind: str, pairs: list[ConfusedPair]) -> Picture:
        total = sum(abs(pair.after - pair.before) for pair in pairs)
        title = f'{total} confusions {kind} · {each.name}'
        names = [figures.shorten(name, 12) for name in each.classes]
        rows = {
            f'{names[pair.true]} → {names[pair.predicted]}': (pair.before, pair.after)
            for pair in pairs[:_MOST_PAIRS]
        }
        second = (each.name, each.color)
        figure = figures.draw_changes(rows, title, 'samples', first, second, limit)
        name = f'run{number}_confusions_{_file_name(kind)}'
        return Picture(name, f'{title}, against {first[0]}', figure)

    return [draw(kind, pairs) for kind, pairs in kinds.items() if pairs]


def _classes(series: Sequence[Series]) -> Section:
    pictures = []
    for number, each in enumerate(series):
        other = _seen_alone(each, series)
        if other is None:
            continue
        before, after = (
            100 * class_accuracies(s.seen.labels, s.seen.student.argmax(1), len(each.classes))
            for s in (other, each)
        )
        change = after - before
        order = [index for index in np.argsort(-change) if np.isfinite(change[index])]
        if len(order) > 2 * _MOST_CLASSES:
            order = [*order[:_MOST_CLASSES], *order[-_MOST_CLASSES:]]
        rows = {
            f'{figures.shorten(each.classes[index], 12)}  {change[index]:+.0f}': (
                before[index],
                after[index],
            )
            for index in order
        }
        title = f'Accuracy by class · {each.name}'
        dots = (other.name, other.color), (each.name, each.color)
        figure = figures.draw_changes(rows, title, 'accuracy, %', *dots, 100)
        pictures.append(Picture(f'run{number}_classes', f'{title}, against {other.name}', figure))
    return Section(
        'Accuracy by class',
        'The accuracy on each class with and without the teacher, and the difference in points, '
        f'from the largest gain to the largest loss. With more than {2 * _MOST_CLASSES} classes, '
        f'the {_MOST_CLASSES} largest of both are drawn.',
        [pictures],
    )


def _images(series: Sequence[Series]) -> Section:
    galleries = []
    for each in series:
        other = _seen_alone(each, series)
        if other is None or each.first.picture is None:
            continue
        taught, untaught = (s.seen.student.argmax(1) for s in (each, other))
        right, was_right = taught == each.seen.labels, untaught == each.seen.labels
        for kind, chosen in (('repaired', right & ~was_right), ('broken', was_right & ~right)):
            found = np.flatnonzero(chosen)
            thumbnails = [
                _thumbnail(each, other, int(index)) for index in _spread(found, _MOST_IMAGES)
            ]
            if thumbnails:
                shown = f', {len(thumbnails)} shown' if len(thumbnails) < len(found) else ''
                title = f'{len(found)} of {len(right)} images {kind} by {each.name}{shown}'
                galleries.append(Gallery(title, thumbnails))
    return Section(
        'Images',
        'Repaired: images that the student alone classifies wrongly and the distilled student '
        'correctly. Broken: the reverse. Even two runs that differ only in the seed differ on some '
        'images, so compare the two counts.',
        galleries=galleries,
    )


def _thumbnail(each: Series, other: Series, index: int) -> Thumbnail:
    seen, names = each.seen, each.classes

    def answer(logits: Any) -> str:
        return names[int(logits[index].argmax())]

    lines = [f'true: {names[int(seen.labels[index])]}']
    if seen.teacher is not None:
        lines.append(f'teacher: {answer(seen.teacher)}')
    lines += [f'distilled: {answer(seen.student)}', f'alone: {answer(other.seen.student)}']
    return Thumbnail(each.first.picture(index), lines)


def _maps(series: Sequence[Series]) -> Section:
    return Section(
        't-SNE of the features',
        "The last stage's features, averaged over the map or the tokens; one colour per class, at "
        f'most {figures.MOST_MAPPED}. Neighbouring points are images that the model finds similar; '
        'distances between groups mean little.',
        [
            _numbered(number, model_figures.feature_maps(each.seen, each.classes, each.name))
            for number, each in enumerate(series)
            if each.seen
        ],
    )


def _efficiency(series: Sequence[Series]) -> Section:
    costs = {name: cost for each in series for name, cost in each.first.costs.items()}
    runtimes = [*dict.fromkeys(name for cost in costs.values() for name in cost.latency)]
    columns = ['Model', 'Parameters, M', 'Multiply-adds, G', 'Weights, MB']
    columns += [f'{runtime}: 1 image, ms' for runtime in runtimes]
    columns += [f'{runtime}: images/s at batch 64' for runtime in runtimes]
    rows = [Row('', [name, *_cells(cost, runtimes)]) for name, cost in costs.items()]
    notes = ''.join(f' {name}: {cost.note}.' for name, cost in costs.items() if cost.note)
    return Section(
        'Efficiency',
        f'Measured when this page was made, on {describe_machine()}; medians.{notes}',
        tables=[Table(columns, rows)] if rows else [],
    )


def _cells(cost: Efficiency, runtimes: Sequence[str]) -> list[str]:
    times = [cost.latency.get(runtime) for runtime in runtimes]
    rates = [cost.images_per_second.get(runtime) for runtime in runtimes]
    return [
        f'{cost.parameters / 1e6:.2f}',
        _UNKNOWN if cost.flops is None else f'{cost.flops / 1e9:.3g}',
        f'{cost.megabytes:.2f}',
        *(_UNKNOWN if value is None else f'{value:.2f}' for value in times),
        *(_UNKNOWN if value is None else f'{value:,.0f}' for value in rates),
    ]


def _speed(series: Sequence[Series]) -> Section:
    speeds = {each.name: each.images_per_second() for each in series}
    colors = [each.color for each in series]
    return Section(
        'Throughput and learning rate',
        'Training throughput of all processes, from the logged time per step, without validation.',
        [
            _curves(
                series, 'throughput', 'Throughput of training', speeds, 'images/s', colors=colors
            )
            + _lines(series, 'learning_rate', 'Learning rate', 'lr', 'learning rate')
        ],
    )


SECTIONS: tuple[Callable[[Sequence[Series]], Section], ...] = (
    _accuracy,
    _images,
    _classes,
    _confusions,
    _efficiency,
    _outcomes,
    _losses,
    _fusion,
    _relations,
    _calibration,
    _maps,
    _similarity,
    _speed,
)
"""Sections in the order of the page."""


def _seen_alone(each: Series, series: Sequence[Series]) -> Series | None:
    """Return the same student without a teacher, if both saw the same validation samples."""
    if each.seen is None or each.seen.teacher is None:
        return None
    seen = [other for other in series if other.seen is not None]
    other = alone(each, seen)
    same = other is not None and np.array_equal(other.seen.labels, each.seen.labels)
    return other if same else None


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most ``most`` of the values, evenly spaced."""
    return values[np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int)]


def _lines(
    series: Sequence[Series], name: str, title: str, key: str, ylabel: str, **kwargs: Any
) -> list[Picture]:
    """Draw a logged scalar of all series, each in its colour and with the band of its seeds."""
    curves = {each.name: each.curve(key) for each in series}
    bands = {each.name: each.band(key) for each in series}
    colors = [each.color for each in series]
    return _curves(series, name, title, curves, ylabel, bands=bands, colors=colors, **kwargs)


def _curves(
    series: Sequence[Series],
    name: str,
    title: str,
    curves: dict[str, Curve],
    ylabel: str,
    **kwargs: Any,
) -> list[Picture]:
    """Draw one figure, or none if nothing was logged."""
    if not any(curves.values()):
        return []
    by_epoch = any('epoch' in each.run.names() for each in series)
    counted = 'epoch' if by_epoch else 'iteration'
    figure = figures.draw_curves(curves, title, ylabel, xlabel=counted, **kwargs)
    return [Picture(name, f'{title} over the {counted}s', figure)]


def _observed(series: Sequence[Series], scalar: str, title: str) -> list[Picture]:
    """Draw a scalar that the runs' FigureHook logged."""
    curves = {
        each.name: {x: 100 * y for x, y in each.curve(f'observed/{scalar}').items()}
        for each in series
    }
    colors = [each.color for each in series]
    return _curves(series, f'{scalar}_in_training', title, curves, '%', colors=colors)


def _numbered(number: int, pictures: Sequence[Picture]) -> list[Picture]:
    """Prefix the names of pictures with the number of their run."""
    return [replace(picture, name=f'run{number}_{picture.name}') for picture in pictures]


def _file_name(text: str) -> str:
    return ''.join(letter if letter.isalnum() else '_' for letter in text)[:60]
