"""The report: logged curves of runs and figures of their models on the validation set."""

from __future__ import annotations

import base64
import io
import shlex
import statistics
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.utils import get_git_hash
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mldr_kd_mm.evaluation.efficiency import Efficiency, measure
from mldr_kd_mm.evaluation.logged_run import ACCURACY, LoggedRun, find_checkpoints
from mldr_kd_mm.evaluation.measures import (
    agreement,
    expected_calibration_error,
    mean_and_std,
    softmax,
)
from mldr_kd_mm.evaluation.observer import Observations, Observer
from mldr_kd_mm.models.data_preprocessor import statistics as statistics_of
from mldr_kd_mm.utils.errors import ConfigError, check_positive, named
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.utils.outputs import write_output
from mldr_kd_mm.utils.progress import track
from mldr_kd_mm.version import __version__
from mldr_kd_mm.visualization import figures
from mldr_kd_mm.visualization.model_figures import class_names
from mldr_kd_mm.visualization.page import Row, Table, render
from mldr_kd_mm.visualization.sections import SECTIONS
from mldr_kd_mm.visualization.series import Entry, Series, alone, group_runs
from mldr_kd_mm.visualization.style import style_of
from mldr_kd_mm.visualization.verdict import closed, describe_data, gain, verdict

_COLUMNS = (
    'Run',
    'Teacher',
    'Student',
    'Parameters of the student',
    'Epochs',
    'Last accuracy, %',
    'Best accuracy, %',
    'Gain over the student alone, points',
    "Share of the teacher's lead, %",
    "Teacher's accuracy, %",
    'Agreement with the teacher, %',
    'ECE of student / teacher, %',
    'Images/s',
)
_UNKNOWN = '–'
_THUMBNAIL = 96  # pixels


def make_report(
    work_dirs: Sequence[str | Path],
    out: str | Path,
    samples: int = 2000,
    checkpoint: str | None = None,
) -> Path:
    """Write ``report.html``, and its figures as PNG files in ``figures``.

    A file of these names that the user has written or changed is kept, see
    :func:`~mldr_kd_mm.utils.outputs.write_output`.

    Runs that differ only in the seed are one series, with one line in each figure. If the teacher,
    the checkpoint or the data of a run are missing, the report shows what the run logged, with a
    note.

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
    names = _short_names(paths)
    runs = [LoggedRun.read(path, name) for path, name in zip(paths, names, strict=True)]
    series = group_runs([Entry(run) for run in runs], lambda n: style_of(n)['color'])
    costs: dict[str, Efficiency] = {}
    for each in series:
        for entry in each.entries:
            _look_at(entry, samples, checkpoint, costs if entry is each.first else None)
    out = Path(out)
    sections = [section(series) for section in SECTIONS]
    for section in sections:
        for picture in section.pictures:
            path = out / 'figures' / f'{picture.name}.png'
            write_output(path, figures.to_png(picture.figure))
    commit = get_git_hash(digits=7, fallback='')
    page = render(
        'Distillation report',
        verdict(series),
        f'{plural(len(runs), "run")}, validated on {describe_data(series)}. The figures of the '
        f'models use up to {samples:,} samples of the validation set. Made by mldr_kd_mm '
        f'{__version__} on {date.today()}{commit and ", commit "}{commit}.{_next_step(runs)}',
        Table(_COLUMNS, [Row(each.color, _summary(each, series)) for each in series]),
        [f'{e.run.name}: {e.note}' for each in series for e in each.entries if e.note],
        sections,
    )
    write_output(out / 'report.html', page)
    return out / 'report.html'


def _next_step(runs: Sequence[LoggedRun]) -> str:
    """Return how to use the first student, or nothing if it has not been saved."""
    for run in runs:
        exported = run.work_dir / 'student'
        places = [exported] if exported.is_dir() else find_checkpoints(run.work_dir)
        for place in places if run.has_teacher else ():
            return f' To use a student: mldr-kd predict {shlex.quote(str(place))} IMAGES.'
    return ''


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct endings of the paths."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ['/'.join(its_own[-length:]) for its_own in parts]
        if len(set(names)) == len(names):
            return names
    raise ConfigError('work_dirs: a directory is given twice')


def _look_at(
    entry: Entry, samples: int, checkpoint: str | None, costs: dict[str, Efficiency] | None
) -> None:
    """Run the models of a run on the validation set, if both still exist.

    Args:
        entry: The run; what is found is written into it.
        samples: Maximum number of samples.
        checkpoint: Name of the checkpoint file.
        costs: Costs of models that have been measured; new ones are added. None: nothing is
            measured.
    """
    run = entry.run
    try:
        with named('model'):
            entry.parameters = sum(p.numel() for p in run.build_student().parameters())
        content = run.checkpoint(checkpoint)
        entry.processes = content.get('meta', {}).get('steps', {}).get('processes', 1)
        batches = run.validation_batches(samples)
        model = run.build_model(content)
        entry.seen = _observe(model, batches, run.name)
    except ConfigError as error:
        entry.note = f'no figures of its models: {error}'
        return
    dataset, count = batches.dataset.dataset, entry.seen.student.shape[1]
    entry.classes = class_names(dataset, count)
    entry.images = len(dataset)
    model.cpu()
    entry.picture = partial(_picture, batches.dataset, model.data_preprocessor)
    if costs is not None:
        for name, measured, size in _models(run, model, batches.dataset):
            if name not in costs:
                costs[name] = measure(measured, size)
            entry.costs[name] = costs[name]


def _models(
    run: LoggedRun, model: torch.nn.Module, dataset: Dataset
) -> Iterator[tuple[str, torch.nn.Module, torch.Size]]:
    """Yield the name, the network and the image size of each teacher and the student."""
    images = _preprocess(model.data_preprocessor, dataset[0])
    teachers = model.teachers if run.has_teacher else ()
    for (label, teacher, _), config in zip(teachers, run.teachers, strict=True):
        size = teacher.prepare(images).shape[1:]
        yield _sized(label, config, size), teacher.model, size
    student = model.student if run.has_teacher else model
    yield _sized('student', run.student, images.shape[1:]), student, images.shape[1:]


def _sized(role: str, config: dict[str, Any], size: torch.Size) -> str:
    return f'{role} {describe_model(config)}, {size[-2]} x {size[-1]} px'


def _preprocess(preprocessor: torch.nn.Module, sample: dict[str, Any]) -> Tensor:
    """Return a sample as a batch of one preprocessed image (1, 3, H, W)."""
    return preprocessor(pseudo_collate([sample]), False)['inputs']


def _picture(dataset: Dataset, preprocessor: torch.nn.Module, index: int) -> str:
    """Return an image as a data URI, with the normalisation of the student undone."""
    mean, std = statistics_of(preprocessor)
    pixels = _preprocess(preprocessor, dataset[index])[0] * std + mean
    image = Image.fromarray(pixels.permute(1, 2, 0).clamp(0, 255).byte().numpy())
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=80)
    return f'data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}'


def _observe(model: torch.nn.Module, batches: Any, name: str) -> Observations:
    model.to('cuda' if torch.cuda.is_available() else 'cpu')
    observer = Observer(model)
    with named('val_dataloader'):
        for data in track(batches, name):
            batch = model.data_preprocessor(data, False)
            observer.add(batch['inputs'], batch['data_samples'])
    return observer.observations()


def _summary(each: Series, series: Sequence[Series]) -> list[str]:
    """Return a row of the table."""
    run, seen, parameters = each.run, each.seen, each.first.parameters
    last = each.last_accuracies()
    best = [max(entry.run.curve(ACCURACY).values()) for entry in each.entries] if last else []
    epochs, teacher = [*each.curve('loss')], each.teacher_accuracy()
    speeds = [*each.images_per_second().values()]
    baseline = alone(each, series) if run.has_teacher else None
    points, share = gain(each, baseline), closed(each, baseline)
    same, ece = _UNKNOWN, _UNKNOWN
    if seen:
        sides = [seen.student] if seen.teacher is None else [seen.student, seen.teacher]
        errors = (expected_calibration_error(softmax(side), seen.labels) for side in sides)
        ece = ' / '.join(f'{100 * error:.1f}' for error in errors)
    if seen and seen.teacher is not None:
        same = f'{100 * agreement(seen.student, seen.teacher):.1f}'
    return [
        each.name,
        ', '.join(map(describe_model, run.teachers)) or 'none',
        describe_model(run.student),
        _UNKNOWN if parameters is None else f'{parameters / 1e6:.2f} M',
        f'{max(epochs)}' if epochs else _UNKNOWN,
        mean_and_std(last) if last else _UNKNOWN,
        mean_and_std(best) if best else _UNKNOWN,
        _UNKNOWN if points is None else f'{points:+.2f}',
        _UNKNOWN if share is None else f'{share:.0f}',
        _UNKNOWN if teacher is None else f'{teacher:.2f}',
        same,
        ece,
        f'{statistics.median(speeds):,.0f}' if speeds else _UNKNOWN,
    ]


def describe_model(config: dict[str, Any]) -> str:
    """Return the name of a classifier from its config."""
    if config.get('model_name'):
        return str(config['model_name'])
    if config.get('module'):  # of a ModuleClassifier: the model on the hub, or the function
        kwargs = config.get('kwargs') or {}
        return str(kwargs.get('name') or str(config['module']).rpartition(':')[2])
    backbone = config.get('backbone') or config
    details = [backbone.get(key) for key in ('arch', 'model_name', 'depth')]
    details = [str(detail) for detail in details if isinstance(detail, (str, int))]
    return ' '.join([str(backbone.get('type')), *details])
