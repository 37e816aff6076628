"""The sections of a report: each makes its figures of all runs."""

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
    """A run of the report; what is not known is None."""

    run: LoggedRun
    color: str
    processes: int = 1
    parameters: int | None = None
    seen: Observations | None = None
    classes: Sequence[str] = ()
    note: str = ''

    @property
    def name(self) -> str:
        """What figures call it."""
        return self.run.name

    def curve(self, key: str) -> dict[int, float]:
        """What it logged under a name, over the epochs."""
        return self.run.curve(key)

    def images_per_second(self) -> dict[int, float]:
        """How many images of all processes were trained on in a second, over the epochs."""
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
        'On the validation set, after each validation. Dashed: the teacher, measured before '
        'training on the same samples. The student need not reach it; what counts is how far it '
        'is above the same student trained alone.',
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
        "What the optimizer sums. The student's own loss is that of its head with the labels; "
        'each other term compares one of its heads or features with the teacher, and is logged '
        'with its weight. A term that does not fall, or is far larger than all others, is the '
        'first suspect when distillation does not help.',
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
        'How much each stage of the student has a say in the fused logits. The curves are means '
        'over samples and classes; equal weights mean that the gate has not learnt to choose. A '
        'band, where FigureHook logged one, goes from the class with the lowest weight to the '
        'class with the highest. In the matrices, of the checkpoint, a column is a class: blue '
        'stages count for more than an equal share there, orange ones for less.',
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
    alt = 'Of each run the part of the samples that student and teacher are right about'
    pictures = []
    if parts:
        pictures.append(Picture('outcomes', alt, figures.draw_outcomes(parts, 'Who is right')))
    pictures += _observed(entries, 'agreement', 'Agreement in training')
    return Section(
        'Agreement with the teacher',
        'Student and teacher agree where both are right and where they make the same mistake. '
        'What only the teacher has right is what is left to learn from it. The agreement in '
        'training is what FigureHook logged, on a few batches.',
        [pictures],
    )


def _relations(entries: Sequence[Entry]) -> Section:
    return Section(
        'Class relations',
        'What the class relation of DFRA compares: of each pair of classes how strongly the '
        'logits go together, a softmax over each column, mean over the samples, at temperature 1. '
        'In the differences blue means that the student relates the two more than the teacher '
        'does, orange less; an empty matrix means that the relations are the same. Of more than '
        f'{model_figures.MOST_CLASSES} classes so many are drawn, evenly spaced.',
        [
            _numbered(number, model_figures.relations(entry.seen, entry.classes, entry.name))
            for number, entry in enumerate(entries)
            if entry.seen
        ],
    )


def _calibration(entries: Sequence[Entry]) -> Section:
    return Section(
        'Calibration',
        'Samples sorted by how sure a model is, in 15 bins; larger points stand for more samples. '
        'Below the diagonal a model is surer than it should be, above it less sure. ECE, the '
        'expected calibration error, is the mean distance from the diagonal.',
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
        'Linear CKA of the pooled features: 1 where teacher (rows) and student (columns) place '
        'the samples alike up to rotation and scale, 0 where they have nothing in common.',
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
        'The true class → the class that is named instead. Repaired: what the student confuses '
        'less often than the same student trained alone; made: what it confuses more often. Where '
        'no run of the student alone is among the runs, the student is compared with its teacher. '
        f'The {_MOST_PAIRS} largest changes are drawn.',
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
        kinds = {'repaired': fewer, 'made': more}

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
        'Images that all processes train on in a second, from the logged time of a step; '
        'validation is not in it.',
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
"""In the order of the page."""


def _alone(entry: Entry, entries: Sequence[Entry]) -> Entry | None:
    """The run of the same student without a teacher, if one can be the same seed's."""
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
    """One figure; none if nothing was logged."""
    if not any(curves.values()):
        return []
    by_epoch = any('epoch' in entry.run.names() for entry in entries)
    counted = 'epoch' if by_epoch else 'iteration'
    figure = figures.draw_curves(curves, title, ylabel, xlabel=counted, **kwargs)
    return [Picture(name, f'{title} over the {counted}s', figure)]


def _observed(entries: Sequence[Entry], scalar: str, title: str) -> list[Picture]:
    """What the runs' FigureHook logged."""
    curves = {
        entry.name: {x: 100 * y for x, y in entry.curve(f'observed/{scalar}').items()}
        for entry in entries
    }
    return _curves(entries, f'{scalar}_in_training', title, curves, '%', legend=len(entries) > 1)


def _numbered(number: int, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures of the run of this number, under names of its own."""
    return [replace(picture, name=f'run{number}_{picture.name}') for picture in pictures]


def _file_name(text: str) -> str:
    return ''.join(letter if letter.isalnum() else '_' for letter in text)[:60]
