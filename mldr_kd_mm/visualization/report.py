"""The report: logged curves of runs and figures of their models on the validation set."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mldr_kd_mm.evaluation.logged_run import ACCURACY, LoggedRun
from mldr_kd_mm.evaluation.measures import agreement, expected_calibration_error, softmax
from mldr_kd_mm.evaluation.observer import Observations, Observer
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.errors import ConfigError, check_positive, named
from mldr_kd_mm.utils.progress import track
from mldr_kd_mm.version import __version__
from mldr_kd_mm.visualization import figures
from mldr_kd_mm.visualization.model_figures import class_names
from mldr_kd_mm.visualization.page import Row, render
from mldr_kd_mm.visualization.sections import SECTIONS, Entry
from mldr_kd_mm.visualization.style import style_of

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


def make_report(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    samples: int = 2000,
    checkpoint: str | None = None,
) -> Path:
    """Write ``report.html``, and its figures as PNG files in ``figures``.

    If the teacher, the checkpoint or the data of a run are missing, the report shows what the run
    logged, with a note.

    Args:
        work_dirs: Work directories of the runs, whose curves are overlaid.
        out: Output folder.
        samples: Maximum number of validation samples to run the models on.
        checkpoint: Name of the checkpoint file in each work directory. None: the newest.

    Returns:
        Path of the page.

    Raises:
        ConfigError: A folder is not the work directory of a run.
    """
    check_positive(samples=samples)
    paths = [Path(work_dir) for work_dir in work_dirs]
    entries = [
        _look_at(LoggedRun.read(path, name), style_of(number)['color'], samples, checkpoint)
        for number, (path, name) in enumerate(zip(paths, _short_names(paths), strict=True))
    ]
    out = Path(out)
    (out / 'figures').mkdir(parents=True, exist_ok=True)
    sections = [section(entries) for section in SECTIONS]
    for section in sections:
        for picture in section.pictures:
            with atomic_write(out / 'figures' / f'{picture.name}.png') as file:
                file.write(figures.to_png(picture.figure))
    page = render(
        'Distillation report',
        f'{len(entries)} run{"s" if len(entries) > 1 else ""}. The figures of the models use up to '
        f'{samples:,} samples of the validation set. Made by mldr_kd_mm {__version__}.',
        _COLUMNS,
        [Row(entry.color, _summary(entry)) for entry in entries],
        [f'{entry.name}: {entry.note}' for entry in entries if entry.note],
        sections,
    )
    with atomic_write(out / 'report.html') as file:
        file.write(page.encode())
    return out / 'report.html'


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct endings of the paths."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ['/'.join(its_own[-length:]) for its_own in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError('work_dirs: a directory is given twice')


def _look_at(run: LoggedRun, color: str, samples: int, checkpoint: str | None) -> Entry:
    """Run the models of a run on the validation set, if both still exist."""
    entry = Entry(run, color)
    try:
        with named('model'):
            entry.parameters = sum(p.numel() for p in run.build_student().parameters())
        content = run.checkpoint(checkpoint)
        entry.processes = content.get('meta', {}).get('steps', {}).get('processes', 1)
        batches = run.validation_batches(samples)
        entry.seen = _observe(run.build_model(content), batches, run.name)
    except ConfigError as error:
        entry.note = f'no figures of its models: {error}'
        return entry
    dataset, count = batches.dataset.dataset, entry.seen.student.shape[1]
    entry.classes = class_names(dataset, count)
    return entry


def _observe(model: torch.nn.Module, batches: Any, name: str) -> Observations:
    model.to('cuda' if torch.cuda.is_available() else 'cpu')
    observer = Observer(model)
    with named('val_dataloader'):
        for data in track(batches, name):
            batch = model.data_preprocessor(data, False)
            observer.add(batch['inputs'], batch['data_samples'])
    return observer.observations()


def _summary(entry: Entry) -> list[str]:
    """Return the entry's row of the table."""
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
    """Return the name of a classifier from its config."""
    if config.get('model_name'):
        return str(config['model_name'])
    backbone = config.get('backbone') or config
    details = [backbone.get(key) for key in ('arch', 'model_name', 'depth')]
    details = [str(detail) for detail in details if isinstance(detail, (str, int))]
    return ' '.join([str(backbone.get('type')), *details])
