"""Results of trials: the record of a finished run, and tables and plots of all runs."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from mldr_kd_mm.apis import trial
from mldr_kd_mm.apis.configs import SCRATCH
from mldr_kd_mm.apis.environment import MODULES, describe_environment
from mldr_kd_mm.apis.trial import Settings, Trial, write_text
from mldr_kd_mm.engine.processes import Ended, RunFailed, RunQueue, places, train_all
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.evaluation.measures import mean_and_std
from mldr_kd_mm.evaluation.statistics import paired_difference, rank_groups
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.nested import iter_differences
from mldr_kd_mm.utils.outputs import show_markdown, write_output
from mldr_kd_mm.visualization.style import COLORS, INK, apply_style

Entry = tuple[str, str, Settings, str]
"""Pair, name for errors, settings and remedy of a run."""

KD = 'kd'
TEXT = f"""# Results

Top-1 accuracy on the validation set in %, mean ± standard deviation over the seeds.
"vs {SCRATCH}", the student alone, and "vs {KD}" are mean differences after the last epoch over the
seeds of both methods, with a 95 % confidence interval (paired t). A difference is significant if
its interval excludes 0. Methods that share a letter under "group" do not differ significantly:
paired t-tests of all pairs of methods, at 5 % after Holm's adjustment.
"""


@dataclass(frozen=True)
class Result:
    """The record of a finished run: its result.json, and its row of results.csv.

    Attributes:
        pair: Name of the pair, or of a teacher that was trained.
        method: Name of the method, ``scratch`` or ``teacher``.
        seed: The seed of the Runner.
        last: Top-1 accuracy after the last epoch, in %.
        best: Highest top-1 accuracy of all epochs, in %.
        teacher: Top-1 accuracy of the teacher before training, in %; None if not measured.
        epochs: Number of epochs.
        seconds: Time from the start of the Runner to its last log, summed over its parts.
        memory: Peak GPU memory that PyTorch allocated or, without a GPU, of the process, in MB.
        teacher_checkpoint: The teacher checkpoint in the config.
        teacher_sha256: SHA-256 of that file; None if it is not a local file.
        finished: Date and time of the end.
        settings: The run's identity, a hash of its settings.
        command: The command that started the run.
        commit: This and the others: see :func:`mldr_kd_mm.apis.environment.describe_environment`.
    """

    pair: str
    method: str
    seed: int
    last: float
    best: float
    teacher: float | None
    epochs: int
    seconds: float
    memory: float
    teacher_checkpoint: str | None
    teacher_sha256: str | None
    finished: str
    commit: str
    device: str
    python: str
    torch: str
    timm: str
    mmengine: str
    mmcv: str
    mmpretrain: str
    settings: str = ''  # older results lack this and the next field
    command: str = ''


@dataclass(eq=False)
class MeasuredTrial(Trial):
    """A trial whose result is written when it ends.

    Attributes:
        labels: The fields of its :class:`Result` that do not depend on the run: pair, method, seed
            and command.
    """

    labels: dict[str, Any]

    @classmethod
    def plan(
        cls, name: str, work_dir: Path, settings: Settings, labels: dict[str, Any]
    ) -> MeasuredTrial:
        """Return a trial in a work directory."""
        # The Runner writes its own config into the work directory.
        epochs = trial.epochs_of(settings, name)
        return cls(name, config_file(work_dir), work_dir, epochs, None, settings, labels)

    @property
    def result_file(self) -> Path:
        """The file that marks a finished run."""
        return self.config.with_name('result.json')

    def check_stored(self) -> None:
        if self.result_file.is_file() or self.records():
            super().check_stored()

    def write_result(self, ended: Ended, made_with: dict[str, str]) -> None:
        """Write the result of the finished run; raise :class:`RunFailed` if it has none."""
        accuracies, settings = self.accuracies(ended), self.all_settings()
        memory = [record['memory'] for record in self.records() if 'memory' in record]
        result = Result(
            **self.labels,
            **made_with,
            last=accuracies[self.epochs],
            best=max(accuracies.values()),
            teacher=next(iter(self.curve(f'teacher/{ACCURACY}').values()), None),
            epochs=self.epochs,
            seconds=self.seconds(),
            memory=max(memory, default=round(ended.memory)),
            teacher_checkpoint=settings['model'].get('teacher_checkpoint'),
            teacher_sha256=settings['teacher_sha256'],
            finished=datetime.now().isoformat(timespec='seconds'),
            settings=trial.identity(settings),
        )
        write_text(self.result_file, json.dumps(asdict(result), indent=1) + '\n')

    def seconds(self) -> float:
        """Return the total duration of all parts of the run."""
        # The Runner writes its config next to the log when it starts.
        logs = list(self.work_dir.glob('*/vis_data/scalars.json'))
        begins = [log.with_name('config.py').stat().st_mtime for log in logs]
        return round(sum(log.stat().st_mtime for log in logs) - sum(begins), 1)


def config_file(work_dir: Path) -> Path:
    """Return the config that a trial stores in its work directory."""
    return work_dir / 'benchmark/config.py'


def folder(work_dir: Path, pair: str, method: str, seed: int) -> Path:
    """Return the work directory of a student."""
    return work_dir / pair / method / f'seed{seed}'


def run_all(trials: Sequence[MeasuredTrial], jobs: int | None, console: Console) -> list[str]:
    """Run every unfinished trial; return one line for each failed one.

    Args:
        trials: The trials; those that another needs come before it.
        jobs: Number of concurrent runs, see :func:`~mldr_kd_mm.engine.processes.places`.
        console: Shows the progress.
    """
    runs = [run for run in trials if not run.result_file.is_file()]
    made_with, failures = describe_environment(), {}

    def on_end(run: MeasuredTrial, ended: Ended) -> None:
        try:
            run.write_result(ended, made_with)
        except RunFailed as error:
            failures[run] = str(error)
            console.print(f'{run.name}: failed')

    train_all(RunQueue(runs, on_end), places(jobs), console)
    for run in runs:
        if run not in failures and not run.result_file.is_file():
            failures[run] = f'{run.name} did not start, since {run.needs.name} failed'
    return list(failures.values())


def read_results(work_dir: Path) -> list[Result]:
    """Return the finished runs of a benchmark: by pair, then scratch first, then by method.

    Raises:
        ConfigError: A result file cannot be read.
    """
    results = [_read(file) for file in work_dir.glob('*/*/seed*/benchmark/result.json')]
    return sorted(results, key=lambda r: (r.pair, r.method != SCRATCH, r.method, r.seed))


def _read(file: Path) -> Result:
    names = {field.name for field in fields(Result)}
    try:
        values = json.loads(file.read_text()).items()
        return Result(**{name: value for name, value in values if name in names})
    except (AttributeError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f'{file}: is not the result of a run ({error})') from error


def check_seeds(work_dir: Path, planned: Sequence[MeasuredTrial] = ()) -> None:
    """Check that the runs of a method differ only in the seed.

    Args:
        work_dir: The directory of the finished runs.
        planned: The runs to come; the finished ones are compared with these.

    Raises:
        ConfigError: A finished run has other settings.
    """
    first: dict[tuple[str, str], tuple[Path, Settings]] = {}
    for run in planned:
        key = run.labels['pair'], run.labels['method']
        first.setdefault(key, (run.work_dir, run.all_settings()))
    for result in read_results(work_dir):
        place = folder(work_dir, result.pair, result.method, result.seed)
        settings = trial.read_settings(config_file(place))
        other, expected = first.setdefault((result.pair, result.method), (place, settings))
        both = (trial.with_seed(each, 0) for each in (expected, settings))
        if found := next(iter_differences(*both), None):
            name, value, stored = found
            raise ConfigError(
                f'{name} is {trial.show(stored)} in the stored run {place}, and '
                f'{trial.show(value)} in {other}, but the seeds of a method share its settings; '
                'use another --work-dir, or remove that directory'
            )


def stored_entries(work_dir: Path, remedy: str) -> Iterator[Entry]:
    """Yield what :func:`check_recipes` takes of the stored runs, those with a teacher first."""
    for result in sorted(read_results(work_dir), key=lambda result: result.method == SCRATCH):
        path = folder(work_dir, result.pair, result.method, result.seed)
        settings = trial.read_settings(config_file(path))
        yield result.pair, f'the stored run {path}', settings, remedy


def check_recipes(entries: Iterable[Entry], varied: Collection[str] = ()) -> None:
    """Check that runs of a pair differ only in the method, the seed and some fields.

    Args:
        entries: Pair, name for errors, settings and remedy of each; each is compared with the first
            of its pair, see :func:`~mldr_kd_mm.apis.trial.shared_settings`.
        varied: Other fields in which they may differ, dotted, with all below them.

    Raises:
        ConfigError: They differ in more.
    """
    first: dict[str, tuple[str, Settings]] = {}
    for pair, name, settings, remedy in entries:
        other, reference = first.setdefault(pair, (name, settings))
        both = trial.shared_settings(reference, settings)
        for field, expected, value in iter_differences(*both):
            if any(f'{field}.'.startswith(f'{each}.') for each in varied):
                continue
            raise ConfigError(
                f'{field} is {trial.show(expected)} in {other}, and {trial.show(value)} in {name}, '
                f'but the methods of a pair share one recipe; {remedy}'
            )


def write_results(work_dir: Path, console: Console) -> bool:
    """Write results.md, results.csv and results.png of the finished runs, and print the tables.

    A file of these names that the user has changed is kept, see
    :func:`~mldr_kd_mm.utils.outputs.write_output`.

    Returns:
        Whether there is a finished run.
    """
    results = read_results(work_dir)
    if not results:
        return False
    table, picture = io.StringIO(newline=''), io.BytesIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Result)])
    writer.writeheader()
    writer.writerows(asdict(result) for result in results)
    draw(results, picture)
    text = markdown(results)
    contents = {'.md': text, '.csv': table.getvalue(), '.png': picture.getvalue()}
    for suffix, content in contents.items():
        write_output(work_dir / f'results{suffix}', content, console.print)
    show_markdown(text, console)
    console.print(f'written: {work_dir}/results.md, results.csv and results.png')
    return True


def group(results: Sequence[Result], field: str) -> dict[str, list[Result]]:
    """Return the results by the value of a field."""
    values = dict.fromkeys(getattr(result, field) for result in results)
    return {value: [r for r in results if getattr(r, field) == value] for value in values}


def markdown(results: Sequence[Result]) -> str:
    """Return the tables of all pairs, and how to reproduce them."""
    tables = [pair_table(pair, its_own) for pair, its_own in group(results, 'pair').items()]
    return '\n'.join([TEXT, *tables, *footer(results), ''])


def pair_table(pair: str, results: Sequence[Result]) -> str:
    """Return the table of a pair: a row for each method."""
    rows = [
        f'method|last epoch|best epoch|vs {SCRATCH}|vs {KD}|group|seeds|minutes per run|peak memory'
    ]
    rows.append(':--|--:|--:|--:|--:|:--|--:|--:|--:')
    methods = group(results, 'method')
    last = {name: {r.seed: r.last for r in its_own} for name, its_own in methods.items()}
    groups = rank_groups(last)
    for method, its_own in methods.items():
        references = (last.get(name, {}) if name != method else {} for name in (SCRATCH, KD))
        cells = [
            method,
            mean_and_std([result.last for result in its_own]),
            mean_and_std([result.best for result in its_own]),
            *(str(paired_difference(last[method], other) or '') for other in references),
            groups[method],
            len(its_own),
            f'{statistics.mean(result.seconds for result in its_own) / 60:.1f}',
            f'{max(result.memory for result in its_own):,.0f} MB',
        ]
        rows.append('|'.join(map(str, cells)))
    table = '\n'.join(f'| {" | ".join(row.split("|"))} |' for row in rows)
    return f'## {pair}\n\n{teacher_line(results)}\n\n{table}\n'


def teacher_line(results: Sequence[Result]) -> str:
    """Return one line about the teacher of a pair."""
    taught = [result for result in results if result.method != SCRATCH]
    accuracy = teacher_accuracy(results)
    parts = [
        'not measured' if accuracy is None else f'{accuracy:.2f} %',
        listed(r.teacher_checkpoint for r in taught if r.teacher_checkpoint),
        listed(f'SHA-256 {r.teacher_sha256}' for r in taught if r.teacher_sha256),
    ]
    return f'Teacher: {", ".join(filter(None, parts))}.'


def teacher_accuracy(results: Sequence[Result]) -> float | None:
    """Return the accuracy of the teacher of a pair, or None if it was not measured."""
    measured = [result.teacher for result in results if result.teacher is not None]
    return statistics.mean(measured) if measured else None


def footer(results: Sequence[Result]) -> list[str]:
    """Return how to reproduce the results: commands, commit, versions, device, seeds, date."""
    modules = ', '.join(
        ' or '.join(text if name in text else f'{name} {text}' for text in group(results, name))
        for name in ('python', *MODULES)
    )
    dates = sorted({result.finished[:10] for result in results})
    return [
        '## Reproduce',
        '',
        *(f'    {command}' for command in group(results, 'command') if command),
        '',
        f'- seeds: {listed(sorted({result.seed for result in results}))}',
        f'- commit: {listed(result.commit for result in results)}',
        f'- versions: {modules}',
        f'- device: {listed(result.device for result in results)}',
        f'- date: {" to ".join(dict.fromkeys([dates[0], dates[-1]]))}',
        "- minutes: from the Runner's start to its last log",
        '- peak memory: allocated by PyTorch on the GPU or, without a GPU, of the process',
    ]


def listed(values: Iterable) -> str:
    """Return the distinct values as text."""
    return ', '.join(dict.fromkeys(map(str, values)))


@apply_style()
def draw(results: Sequence[Result], file: Path | BinaryIO) -> None:
    """Draw a panel per pair: the accuracy of each seed and the mean of each method."""
    pairs = group(results, 'pair')
    most = max(len(group(its_own, 'method')) for its_own in pairs.values())
    figure = Figure(figsize=(max(5, 2 + 0.5 * most), 4.5 * len(pairs)), layout='constrained')
    panels = figure.subplots(len(pairs), squeeze=False).flat
    for panel, (pair, its_own) in zip(panels, pairs.items(), strict=True):
        draw_pair(panel, pair, its_own)
    figure.savefig(file, dpi=120)


def draw_pair(axes: Axes, pair: str, results: Sequence[Result]) -> None:
    """Draw the methods of a pair; a line for the teacher would compress their range."""
    methods = group(results, 'method')
    for place, its_own in enumerate(methods.values()):
        values = [result.last for result in its_own]
        labels = ('one seed', 'mean ± std') if place == 0 else (None, None)
        style = dict(color=COLORS[0], alpha=0.5, markersize=5, label=labels[0])
        axes.plot([place] * len(values), values, 'o', **style)
        std = statistics.stdev(values) if len(values) > 1 else 0
        style = dict(fmt='_', color=INK, capsize=6, label=labels[1])
        axes.errorbar(place, statistics.mean(values), std, **style)
    axes.set_xticks(range(len(methods)), methods, rotation=45, ha='right')
    axes.set_xlim(-0.5, len(methods) - 0.5)
    teacher = teacher_accuracy(results)
    title = pair if teacher is None else f'{pair}, teacher {teacher:.2f} %'
    axes.set(title=title, ylabel='top-1 accuracy after the last epoch, %')
    axes.grid(axis='y')
    axes.legend()
