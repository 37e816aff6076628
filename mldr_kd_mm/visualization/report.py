"""The report of some runs: what they logged, and what their models say of the validation set."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mldr_kd_mm.errors import ConfigError, check_positive, named
from mldr_kd_mm.evaluation.measures import (
    agreement,
    changed_pairs,
    class_relation,
    expected_calibration_error,
    linear_cka,
    reliability,
    softmax,
)
from mldr_kd_mm.evaluation.observer import Observations, Observer
from mldr_kd_mm.evaluation.runs import LoggedRun
from mldr_kd_mm.files import whole_file
from mldr_kd_mm.version import __version__
from mldr_kd_mm.visualization import figures
from mldr_kd_mm.visualization.page import Picture, Row, Section, render

ACCURACY = 'accuracy/top1'
# More are neither seen in a matrix nor read as names.
_MOST_CLASSES = 100
_MOST_PAIRS = 12
_CKA_SAMPLES = 1000
_COLUMNS = (
    'Run',
    'Teacher',
    'Student',
    'Parameters of the student',
    'Epochs',
    'Last accuracy, %',
    'Best accuracy, %',
    "Teacher's accuracy, %",
    'Agreement with the teacher, %',
    'ECE of student / teacher, %',
    'Images/s',
)
_UNKNOWN = '–'


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


def make_report(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    samples: int = 2000,
    checkpoint: str | None = None,
) -> Path:
    """Write ``report.html``, and its figures as PNG files into ``figures``.

    A run whose teacher, checkpoint or data are gone is shown by what it logged, with a note.

    Args:
        work_dirs: Of the runs, which are drawn over each other.
        out: The folder to write to.
        samples: How many samples of the validation set the models are run on at most.
        checkpoint: Name of the file in each work directory. None: the newest.

    Returns:
        The path of the page.

    Raises:
        ConfigError: If one is not the work directory of a run.
    """
    check_positive(samples=samples)
    paths = [Path(work_dir) for work_dir in work_dirs]
    entries = [
        _look_at(LoggedRun.read(path, name), figures.style_of(number)['color'], samples, checkpoint)
        for number, (path, name) in enumerate(zip(paths, _short_names(paths), strict=True))
    ]
    out = Path(out)
    (out / 'figures').mkdir(parents=True, exist_ok=True)
    sections = [section(entries) for section in _SECTIONS]
    for section in sections:
        for picture in section.pictures:
            with whole_file(out / 'figures' / f'{picture.name}.png') as file:
                file.write(figures.to_png(picture.figure))
    page = render(
        'Distillation report',
        f'{len(entries)} run{"s" if len(entries) > 1 else ""}. Figures of the models are of up to '
        f'{samples:,} samples of the validation set. Made by mldr_kd_mm {__version__}.',
        _COLUMNS,
        [Row(entry.color, _summary(entry)) for entry in entries],
        [f'{entry.name}: {entry.note}' for entry in entries if entry.note],
        sections,
    )
    with whole_file(out / 'report.html') as file:
        file.write(page.encode())
    return out / 'report.html'


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ['/'.join(its_own[-length:]) for its_own in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError('work_dirs: one is there twice')


def _look_at(run: LoggedRun, color: str, samples: int, checkpoint: str | None) -> Entry:
    """Run the models of a run, if they and the data are still there."""
    entry = Entry(run, color)
    try:
        with named('model'):
            entry.parameters = sum(p.numel() for p in run.build_student().parameters())
        content = run.checkpoint(checkpoint)
        entry.processes = content.get('meta', {}).get('steps', {}).get('processes', 1)
        entry.classes, batches = run.validation_batches(samples)
        entry.seen = _observe(run.build_model(content), batches)
    except (ConfigError, FileNotFoundError) as error:
        entry.note = f'no figures of its models: {error}'
        return entry
    known, count = list(entry.classes), entry.seen.student.shape[1]
    entry.classes = known if len(known) == count else [str(number) for number in range(count)]
    return entry


def _observe(model: torch.nn.Module, batches: Any) -> Observations:
    model.to('cuda' if torch.cuda.is_available() else 'cpu')
    observer = Observer(model)
    with named('val_dataloader'):
        for data in batches:
            batch = model.data_preprocessor(data, False)
            observer.add(batch['inputs'], batch['data_samples'])
    return observer.observations()


def _summary(entry: Entry) -> list[str]:
    """The entry's row of the table."""
    run, seen = entry.run, entry.seen
    accuracies = list(entry.curve(ACCURACY).values())
    epochs = list(entry.curve('loss'))
    teacher = list(entry.curve(f'teacher/{ACCURACY}').values())
    speeds = list(entry.images_per_second().values())
    same, ece = _UNKNOWN, _UNKNOWN
    if seen:
        sides = [seen.student] if seen.teacher is None else [seen.student, seen.teacher]
        errors = (expected_calibration_error(softmax(side), seen.labels) for side in sides)
        ece = ' / '.join(f'{100 * error:.1f}' for error in errors)
    if seen and seen.teacher is not None:
        same = f'{100 * agreement(seen.student, seen.teacher):.1f}'
    return [
        entry.name,
        describe_model(run.config.model.teacher) if run.has_teacher else 'none',
        describe_model(run.student),
        _UNKNOWN if entry.parameters is None else f'{entry.parameters / 1e6:.2f} M',
        f'{max(epochs)}' if epochs else _UNKNOWN,
        f'{accuracies[-1]:.2f}' if accuracies else _UNKNOWN,
        f'{max(accuracies):.2f}' if accuracies else _UNKNOWN,
        f'{teacher[-1]:.2f}' if teacher else _UNKNOWN,
        same,
        ece,
        f'{statistics.median(speeds):,.0f}' if speeds else _UNKNOWN,
    ]


def describe_model(config: dict[str, Any]) -> str:
    """The name of a classifier, from its config."""
    if config.get('model_name'):
        return str(config['model_name'])
    backbone = config.get('backbone') or config
    details = [backbone.get(key) for key in ('arch', 'model_name', 'depth')]
    details = [str(detail) for detail in details if isinstance(detail, (str, int))]
    return ' '.join([str(backbone.get('type')), *details])


def _training(entries: Sequence[Entry]) -> Section:
    def panel(name: str, key: str, title: str, ylabel: str, **kwargs: Any) -> list[Picture]:
        curves = {entry.name: entry.curve(key) for entry in entries}
        if not any(curves.values()):
            return []
        return [_curves(name, f'{title} over the epochs', curves, title, ylabel, **kwargs)]

    teachers = [value for e in entries for value in e.curve(f'teacher/{ACCURACY}').values()]
    levels = {f'teacher, {value:.1f} %': value for value in teachers}
    return Section(
        'Accuracy',
        'On the validation set, after each validation. Dashed: the teacher, measured before '
        'training on the same samples. The student need not reach it; what counts is how far it '
        'is above the same student trained alone.',
        panel('accuracy', ACCURACY, 'Accuracy of the student', 'top-1 accuracy, %', levels=levels),
    )


def _losses(entries: Sequence[Entry]) -> Section:
    terms = dict.fromkeys(name for e in entries for name in e.run.names() if 'loss' in name)
    pictures = []
    for number, term in enumerate(terms):
        own = term == 'loss'
        title = "The student's own loss" if own else term
        curves = {entry.name: entry.curve(term) for entry in entries}
        pictures.append(
            _curves(
                f'loss_{number}_{_file_name(term)}',
                f'{title} over the epochs',
                curves,
                title,
                'weighted value',
                legend=number == 0 and len(entries) > 1,
            )
        )
    return Section(
        'Losses by term',
        "What the optimizer sums. The student's own loss is that of its head with the labels, "
        'each other term compares one of its heads or features with the teacher, and is logged '
        'with its weight. A term that does not fall, or is far larger than all others, is the '
        'first suspect when distillation does not help.',
        pictures,
    )


def _fusion(entries: Sequence[Entry]) -> Section:
    pictures = []
    for number, entry in enumerate(entries):
        stages = {name[len('fusion_') :]: entry.curve(name) for name in entry.run.names('fusion_')}
        if stages:
            title = f'{entry.name}: fusion weights'
            pictures.append(
                _curves(
                    f'fusion_{number}',
                    f'Mean fusion weight of each stage over the epochs, run {entry.name}',
                    stages,
                    title,
                    'mean weight',
                )
            )
        if entry.seen and entry.seen.fusion_weights is not None:
            weights = entry.seen.fusion_weights
            pictures.append(
                Picture(
                    f'fusion_by_class_{number}',
                    f'Fusion weight of each stage for each class, run {entry.name}',
                    figures.draw_fusion_by_class(
                        weights, f'{entry.name}: weight − 1/{len(weights)}', entry.classes
                    ),
                )
            )
    return Section(
        'Fusion weights',
        'How much each stage of the student has a say in the fused logits. The curves are means '
        'over samples and classes; equal weights mean that the gate has not learnt to choose. In '
        'the matrices, of the checkpoint, a column is a class: blue stages count for more than '
        'an equal share there, orange ones for less.',
        pictures,
    )


def _outcomes(entries: Sequence[Entry]) -> Section:
    parts = {}
    for entry in _taught(entries):
        seen = entry.seen
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
    picture = [Picture('outcomes', alt, figures.draw_outcomes(parts, 'Who is right'))]
    return Section(
        'Agreement with the teacher',
        'Student and teacher agree where both are right and where they make the same mistake. '
        'What only the teacher has right is what is left to learn from it.',
        picture if parts else [],
    )


def _relations(entries: Sequence[Entry]) -> Section:
    pictures = []
    for number, entry in enumerate(_taught(entries)):
        seen, count = entry.seen, entry.seen.student.shape[1]
        chosen = np.linspace(0, count - 1, min(count, _MOST_CLASSES)).round().astype(int)
        names = [entry.classes[index] for index in chosen]
        of = {
            side: class_relation(logits, chosen)
            for side, logits in (
                ('teacher', seen.teacher),
                ('student', seen.student),
                ('fused head', seen.fused),
            )
            if logits is not None
        }
        limit = float(max(relation.max() for relation in of.values()))
        differences = {side: of[side] - of['teacher'] for side in list(of)[1:]}
        most = max(float(np.abs(values).max()) for values in differences.values()) or 1e-6
        shown = [(side, of[side], limit) for side in ('teacher', 'student')]
        shown += [(f'{side} − teacher', values, most) for side, values in differences.items()]
        for place, (what, values, full) in enumerate(shown):
            pictures.append(
                Picture(
                    f'relation_{number}_{place}',
                    f'Class relation: {what}, run {entry.name}',
                    figures.draw_relation(values, f'{entry.name}: {what}', names, full),
                )
            )
    return Section(
        'Class relations',
        'What the class relation of DFRA compares: of each pair of classes how strongly the '
        'logits go together, a softmax over each column, mean over the samples, at temperature 1. '
        'In the differences blue means that the student relates the two more than the teacher '
        'does, orange less; an empty matrix means that the relations are the same. Of more than '
        f'{_MOST_CLASSES} classes {_MOST_CLASSES} are drawn, evenly spaced.',
        pictures,
    )


def _calibration(entries: Sequence[Entry]) -> Section:
    pictures = []
    for number, entry in enumerate(entries):
        seen = entry.seen
        if seen is None:
            continue
        sides = dict(student=seen.student, fused=seen.fused, teacher=seen.teacher)
        bins = {}
        for side, logits in sides.items():
            if logits is not None:
                probabilities = softmax(logits)
                error = expected_calibration_error(probabilities, seen.labels)
                label = f'{side}, ECE {100 * error:.1f} %'
                bins[label] = reliability(probabilities, seen.labels)
        pictures.append(
            Picture(
                f'calibration_{number}',
                f'Accuracy over confidence, run {entry.name}: {", ".join(bins)}',
                figures.draw_reliability(bins, f'{entry.name}: calibration'),
            )
        )
    return Section(
        'Calibration',
        'Samples sorted by how sure a model is, in 15 bins; larger points stand for more samples. '
        'Below the diagonal a model is surer than it should be, above it less sure. ECE, the '
        'expected calibration error, is the mean distance from the diagonal.',
        pictures,
    )


def _cka(entries: Sequence[Entry]) -> Section:
    pictures = []
    for number, entry in enumerate(_taught(entries)):
        student, teacher = entry.seen.student_stages, entry.seen.teacher_stages
        if not (student and teacher) or len(entry.seen.labels) < 4:
            continue
        alike = stage_cka(entry.seen)
        pictures.append(
            Picture(
                f'cka_{number}',
                f'CKA of the stages of teacher and student, run {entry.name}',
                figures.draw_cka(alike, f'{entry.name}: CKA', list(teacher), list(student)),
            )
        )
    return Section(
        'Similarity of the stages',
        'Linear CKA of the pooled features: 1 where teacher (rows) and student (columns) place '
        'the samples alike up to rotation and scale, 0 where they have nothing in common.',
        pictures,
    )


def _pairs(entries: Sequence[Entry]) -> Section:
    pictures = []
    for number, entry in enumerate(_taught(entries)):
        alone = _alone(entry, entries)
        before = entry.seen.teacher if alone is None else alone.seen.student
        pairs = changed_pairs(
            entry.seen.labels,
            before.argmax(1),
            entry.seen.student.argmax(1),
            entry.seen.student.shape[1],
            _MOST_PAIRS,
        )
        other = 'teacher' if alone is None else alone.name
        kinds = ('repaired', 'made') if alone else ('fewer than the teacher', 'more')
        for kind, its_own in zip(kinds, pairs, strict=True):
            if its_own:
                pictures.append(
                    Picture(
                        f'pairs_{number}_{_file_name(kind)}',
                        f'Confusions {kind}, {entry.name} against {other}',
                        figures.draw_pairs(
                            its_own,
                            f'{entry.name}: confusions {kind}',
                            entry.classes,
                            other,
                            entry.name,
                        ),
                    )
                )
    return Section(
        'Confused pairs',
        'The true class → the class that is named instead. Repaired: what the student confuses '
        'less often than the same student trained alone; made: what it confuses more often. Where '
        'no run of the student alone is among the runs, the student is compared with its teacher.',
        pictures,
    )


def _speed(entries: Sequence[Entry]) -> Section:
    rates = {entry.name: entry.curve('lr') for entry in entries}
    speeds = {entry.name: entry.images_per_second() for entry in entries}
    legend = len(entries) > 1
    pictures = [
        _curves(name, f'{title} over the epochs', curves, title, unit, legend=legend)
        for name, curves, title, unit in (
            ('speed', speeds, 'Throughput of training', 'images/s'),
            ('learning_rate', rates, 'Learning rate', 'learning rate'),
        )
        if any(curves.values())
    ]
    return Section(
        'Throughput and learning rate',
        'Images that all processes train on in a second, from the logged time of a step; '
        'validation and the start of an epoch are not in it.',
        pictures,
    )


_SECTIONS: tuple[Callable[[Sequence[Entry]], Section], ...] = (
    _training,
    _losses,
    _fusion,
    _outcomes,
    _relations,
    _calibration,
    _cka,
    _pairs,
    _speed,
)


def stage_cka(seen: Observations) -> np.ndarray:
    """The CKA of each stage of the teacher (rows) with each of the student (columns).

    Args:
        seen: Of 4 samples or more; of more than a thousand, so many are used, evenly spaced.
    """
    count = len(seen.labels)
    chosen = np.linspace(0, count - 1, min(count, _CKA_SAMPLES)).astype(int)
    return np.array(
        [
            [linear_cka(of_teacher[chosen], of_student[chosen]) for of_student in student]
            for student in [seen.student_stages.values()]
            for of_teacher in seen.teacher_stages.values()
        ]
    )


def _taught(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.seen and entry.seen.teacher is not None]


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
    name: str, alt: str, curves: dict[str, dict[int, float]], title: str, ylabel: str, **kwargs: Any
) -> Picture:
    return Picture(name, alt, figures.draw_curves(curves, title, ylabel, **kwargs))


def _file_name(text: str) -> str:
    return ''.join(letter if letter.isalnum() else '_' for letter in text)[:60]
