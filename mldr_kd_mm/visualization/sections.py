"""The sections of a report, each with figures of all runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mldr_kd_mm.evaluation.logged_run import ACCURACY, LoggedRun
from mldr_kd_mm.evaluation.measures import ConfusedPair, changed_pairs
from mldr_kd_mm.evaluation.observer import Observations
from mldr_kd_mm.visualization import figures, model_figures
from mldr_kd_mm.visualization.page import Picture, Section

_MOST_PAIRS = 12


@dataclass
class Entry:
    """A run of the report.

    Attributes:
        run: The logged run.
        color: Its colour in the figures.
        processes: Number of processes that trained it.
        parameters: Number of the student's parameters; None if the student cannot be built.
        seen: Outputs of its models; None if they or the data are missing.
        classes: Names of the classes.
        note: Reason for missing figures.
    """

    run: LoggedRun
    color: str
    processes: int = 1
    parameters: int | None = None
    seen: Observations | None = None
    classes: Sequence[str] = ()
    note: str = ''

    @property
    def name(self) -> str:
        """Name of the run in figures."""
        return self.run.name

    def curve(self, key: str) -> dict[int, float]:
        """Return the curve of a logged scalar."""
        return self.run.curve(key)

    def images_per_second(self) -> dict[int, float]:
        """Return the training throughput of all processes over the epochs."""
        batch = self.run.config.train_dataloader.get('batch_size') or 1
        trained = [record for record in self.run.records if 'loss' in record and 'time' in record]
        return {
            record.get('epoch', record['step']): batch * self.processes / record['time']
            for record in trained
        }


def _accuracy(entries: Sequence[Entry]) -> Section:
    curves = {entry.name: entry.curve(ACCURACY) for entry in entries}
    teachers = [value for e in entries for value in e.curve(f'teacher/{ACCURACY}').values()]
    levels = {f'teacher, {value:.1f} %': value for value in teachers}
    title, unit = 'Accuracy of the student', 'top-1 accuracy, %'
    return Section(
        'Accuracy',
        'Top-1 accuracy on the validation set. Dashed: the teacher on the same samples, measured '
        'before training. The student need not reach the teacher; what matters is how far it is '
        'above the same student trained without a teacher.',
        [_curves(entries, 'accuracy', title, curves, unit, levels=levels)],
    )


def _losses(entries: Sequence[Entry]) -> Section:
    terms = dict.fromkeys(name for e in entries for name in e.run.names() if 'loss' in name)
    pictures = []
    for number, term in enumerate(terms):
        title = "The student's own loss" if term == 'loss' else term
        curves = {entry.name: entry.curve(term) for entry in entries}
        legend = number == 0 and len(entries) > 1
        name = f'loss_{number}_{_file_name(term)}'
        pictures += _curves(entries, name, title, curves, 'weighted value', legend=legend)
    return Section(
        'Losses by term',
        "The terms that the optimizer sums. The student's own loss compares its logits with the "
        'labels; every other term compares one of its heads or features with the teacher and '
        'includes its weight. If distillation does not help, first look for a term that does not '
        'fall or is far larger than the others.',
        [pictures],
    )


def _fusion(entries: Sequence[Entry]) -> Section:
    groups = []
    for number, entry in enumerate(entries):
        stages = {name[len('fusion_') :]: entry.curve(name) for name in entry.run.names('fusion_')}
        bands = {
            stage: tuple(
                entry.curve(f'observed/fusion_{stage}_{end}') for end in ('lowest', 'highest')
            )
            for stage in stages
        }
        title = f'Fusion weights · {entry.name}'
        pictures = _curves(
            entries, f'run{number}_fusion', title, stages, 'mean weight', bands=bands
        )
        if entry.seen:
            drawn = model_figures.fusion_by_class(entry.seen, entry.classes, entry.name)
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


def _outcomes(entries: Sequence[Entry]) -> Section:
    parts = {}
    for entry in entries:
        seen = entry.seen
        if seen is None or seen.teacher is None:
            continue
        student, teacher = (side.argmax(1) for side in (seen.student, seen.teacher))
        right, taught_right = student == seen.labels, teacher == seen.labels
        same = student == teacher
        parts[entry.name] = {
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
    pictures += _observed(entries, 'agreement', 'Agreement in training')
    return Section(
        'Agreement with the teacher',
        'Student and teacher agree if both are right or both make the same mistake. Samples that '
        'only the teacher classifies correctly are what the student can still learn from it. '
        'FigureHook measures the agreement during training on a few batches.',
        [pictures],
    )


def _relations(entries: Sequence[Entry]) -> Section:
    return Section(
        'Class relations',
        'The class relation that DFRA compares: how strongly the logits of two classes go '
        'together, as a softmax over each column, averaged over the samples, at temperature 1. '
        'In the differences, blue means that the student relates two classes more strongly than '
        'the teacher, orange less; an empty matrix means equal relations. At most '
        f'{model_figures.MOST_CLASSES} classes are drawn, evenly spaced.',
        [
            _numbered(number, model_figures.relations(entry.seen, entry.classes, entry.name))
            for number, entry in enumerate(entries)
            if entry.seen
        ],
    )


def _calibration(entries: Sequence[Entry]) -> Section:
    return Section(
        'Calibration',
        'Accuracy per confidence bin, 15 bins; larger points stand for more samples. Below the '
        'diagonal a model is overconfident, above it underconfident. ECE, the expected '
        'calibration error, is the mean distance from the diagonal.',
        [
            [
                picture
                for number, entry in enumerate(entries)
                if entry.seen
                for picture in _numbered(number, model_figures.calibration(entry.seen, entry.name))
            ]
            + _observed(entries, 'student_ece', 'ECE of the student in training')
        ],
    )


def _similarity(entries: Sequence[Entry]) -> Section:
    return Section(
        'Similarity of the stages',
        'Linear CKA of the pooled features of teacher (rows) and student (columns): 1 for features '
        'that are equal up to rotation and scale, 0 for unrelated features.',
        [
            [
                picture
                for number, entry in enumerate(entries)
                if entry.seen
                for picture in _numbered(number, model_figures.similarity(entry.seen, entry.name))
            ]
        ],
    )


def _confusions(entries: Sequence[Entry]) -> Section:
    return Section(
        'Confused pairs',
        'True class → predicted class. Fixed: confusions that are rarer than for the same student '
        'trained without a teacher; new: confusions that are more frequent. If no such run is in '
        'the report, the student is compared with its teacher. The '
        f'{_MOST_PAIRS} largest changes are drawn.',
        [
            _pairs(number, entry, _alone(entry, entries))
            for number, entry in enumerate(entries)
            if entry.seen and entry.seen.teacher is not None
        ],
    )


def _pairs(number: int, entry: Entry, alone: Entry | None) -> list[Picture]:
    seen = entry.seen
    before = seen.teacher if alone is None else alone.seen.student
    fewer, more = changed_pairs(
        seen.labels, before.argmax(1), seen.student.argmax(1), seen.student.shape[1]
    )
    if alone is None:
        kinds = {'fewer than the teacher': fewer, 'more than the teacher': more}
    else:
        kinds = {'fixed': fewer, 'new': more}

    def draw(kind: str, pairs: list[ConfusedPair]) -> Picture:
        other = 'teacher' if alone is None else alone.name
        total = sum(abs(pair.after - pair.before) for pair in pairs)
        title = f'{total} confusions {kind} · {entry.name}'
        drawn = pairs[:_MOST_PAIRS]
        figure = figures.draw_pairs(drawn, title, entry.classes, other, entry.name)
        name = f'run{number}_confusions_{_file_name(kind)}'
        return Picture(name, f'{title}, against {other}', figure)

    return [draw(kind, pairs) for kind, pairs in kinds.items() if pairs]


def _speed(entries: Sequence[Entry]) -> Section:
    speeds = {entry.name: entry.images_per_second() for entry in entries}
    rates = {entry.name: entry.curve('lr') for entry in entries}
    legend = len(entries) > 1
    return Section(
        'Throughput and learning rate',
        'Training throughput of all processes, from the logged time per step, without validation.',
        [
            _curves(
                entries, 'throughput', 'Throughput of training', speeds, 'images/s', legend=legend
            )
            + _curves(
                entries, 'learning_rate', 'Learning rate', rates, 'learning rate', legend=legend
            )
        ],
    )


SECTIONS: tuple[Callable[[Sequence[Entry]], Section], ...] = (
    _accuracy,
    _losses,
    _fusion,
    _outcomes,
    _relations,
    _calibration,
    _similarity,
    _confusions,
    _speed,
)
"""Sections in the order of the page."""


def _alone(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """Return a run of the same student without a teacher, preferably with the same seed."""
    candidates = [
        other
        for other in entries
        if other.seen
        and not other.run.has_teacher
        and _architecture(other.run) == _architecture(entry.run)
        and np.array_equal(other.seen.labels, entry.seen.labels)
    ]

    def seed(run: LoggedRun) -> int | None:
        return run.config.get('randomness', {}).get('seed')

    return min(candidates, key=lambda o: seed(o.run) != seed(entry.run), default=None)


def _architecture(run: LoggedRun) -> dict[str, Any]:
    return {key: value for key, value in run.student.items() if key != 'data_preprocessor'}


def _curves(
    entries: Sequence[Entry],
    name: str,
    title: str,
    curves: dict[str, dict[int, float]],
    ylabel: str,
    **kwargs: Any,
) -> list[Picture]:
    """Draw one figure, or none if nothing was logged."""
    if not any(curves.values()):
        return []
    by_epoch = any('epoch' in entry.run.names() for entry in entries)
    counted = 'epoch' if by_epoch else 'iteration'
    figure = figures.draw_curves(curves, title, ylabel, xlabel=counted, **kwargs)
    return [Picture(name, f'{title} over the {counted}s', figure)]


def _observed(entries: Sequence[Entry], scalar: str, title: str) -> list[Picture]:
    """Draw a scalar that the runs' FigureHook logged."""
    curves = {
        entry.name: {x: 100 * y for x, y in entry.curve(f'observed/{scalar}').items()}
        for entry in entries
    }
    return _curves(entries, f'{scalar}_in_training', title, curves, '%', legend=len(entries) > 1)


def _numbered(number: int, pictures: Sequence[Picture]) -> list[Picture]:
    """Prefix the names of pictures with the number of their run."""
    return [replace(picture, name=f'run{number}_{picture.name}') for picture in pictures]


def _file_name(text: str) -> str:
    return ''.join(letter if letter.isalnum() else '_' for letter in text)[:60]
