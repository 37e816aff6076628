"""Results of benchmark.py: the record of a finished run, and tables and plots of all runs."""

from __future__ import annotations

import csv
import json
import platform
import shlex
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path

import torch
from _runs import ROOT
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mldr_kd_mm.apis.configs import SCRATCH
from mldr_kd_mm.evaluation.measures import mean_and_std
from mldr_kd_mm.evaluation.statistics import paired_difference, rank_groups
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.version import __version__
from mldr_kd_mm.visualization.style import COLORS, INK, apply_style

KD = 'kd'
MODULES = ('torch', 'timm', 'mmengine', 'mmcv', 'mmpretrain')


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
        seconds: Time from the start of the Runner to its last log, summed over the parts of a
            resumed run.
        memory: Peak GPU memory that PyTorch allocated or, without a GPU, peak memory of the
            process, in MB.
        teacher_checkpoint: The teacher checkpoint in the config.
        teacher_sha256: SHA-256 of that file; None if it is not a local file.
        commit: Commit of this project, with ``+changes`` if files differ; without git its version.
        device: Name of the GPU or, without one, of the processor.
        python: Version of Python.
        torch: Version of PyTorch.
        timm: Version of timm.
        mmengine: Version of mmengine, after the distribution's name if that differs.
        mmcv: Version of mmcv, likewise.
        mmpretrain: Version of mmpretrain, likewise.
        finished: Date and time of the end.
        pair_argument: The pair on the command line.
        method_argument: The method on the command line.
        cfg_options: The ``--cfg-options`` of the command line.
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
    commit: str
    device: str
    python: str
    torch: str
    timm: str
    mmengine: str
    mmcv: str
    mmpretrain: str
    finished: str
    pair_argument: str
    method_argument: str
    cfg_options: str


def surroundings() -> dict[str, str]:
    """Return the fields of a :class:`Result` that describe this environment."""
    versions = {}
    # packages_distributions() of Python 3.10 does not know every wheel.
    for distribution in metadata.distributions():
        folders = {file.parts[0] for file in distribution.files or ()}
        for module in folders.intersection(MODULES):
            name, version = distribution.name, distribution.version
            # If two are installed, the first is the one that Python imports.
            versions.setdefault(module, version if name == module else f'{name} {version}')
    return versions | dict(commit=commit(), device=device(), python=platform.python_version())


def commit() -> str:
    """Return the commit of this project, or its version outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git('rev-parse', '--show-toplevel')) == ROOT:
            changes = '+changes' if git('status', '--porcelain') else ''
            return git('rev-parse', 'HEAD') + changes
    except (OSError, subprocess.CalledProcessError):
        pass
    return f'mldr_kd_mm {__version__}'


def device() -> str:
    """Return the names of the GPUs or, without one, of the processor."""
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return ', '.join(sorted({torch.cuda.get_device_name(i) for i in range(count)}))
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def read_results(work_dir: Path) -> list[Result]:
    """Return the finished runs of a benchmark: by pair, then scratch first, then by method.

    Raises:
        ConfigError: A result file cannot be read.
    """
    files = work_dir.glob('*/*/seed*/benchmark/result.json')
    results = [_read_result(file) for file in files]
    return sorted(results, key=lambda r: (r.pair, r.method != SCRATCH, r.method, r.seed))


def _read_result(file: Path) -> Result:
    try:
        return Result(**json.loads(file.read_text()))
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f'{file}: is not the result of a run ({error})') from error


def write_results(results: Sequence[Result], work_dir: Path) -> None:
    """Write results.md, results.csv and results.png."""
    write_atomically(work_dir / 'results.md', markdown(results))
    with (work_dir / 'results.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Result)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    draw(results, work_dir / 'results.png')


def group(results: Sequence[Result], field: str) -> dict[str, list[Result]]:
    """Return the results by the value of a field."""
    values = dict.fromkeys(getattr(result, field) for result in results)
    return {value: [r for r in results if getattr(r, field) == value] for value in values}


def markdown(results: Sequence[Result]) -> str:
    """Return the tables of all pairs and how to reproduce them."""
    tables = [pair_table(pair, its_own) for pair, its_own in group(results, 'pair').items()]
    return '\n'.join(
        [
            '# Benchmark',
            '',
            'Top-1 accuracy on the validation set in %, mean ± standard deviation over the seeds.',
            f'"vs {SCRATCH}", the student alone, and "vs {KD}" are mean differences after the last',
            'epoch over the seeds of both methods, with a 95 % confidence interval (paired t). A',
            'difference is certain if its interval excludes 0. Methods that share a letter under',
            '"group" do not differ: paired t-tests of all pairs of methods, at 5 % after the',
            'adjustment of Holm.',
            '',
            *tables,
            *footer(results),
            '',
        ]
    )


def pair_table(pair: str, results: Sequence[Result]) -> str:
    """Return the table of a pair: a row for each method."""
    methods = group(results, 'method')
    lines = [f'## {pair}', '', teacher_line(results), '']
    lines += [
        f'| method | last epoch | best epoch | vs {SCRATCH} | vs {KD} | group | seeds '
        '| minutes per run | peak memory |',
        '|:--|--:|--:|--:|--:|:--|--:|--:|--:|',
    ]
    last = {name: {r.seed: r.last for r in its_own} for name, its_own in methods.items()}
    groups = rank_groups(last)
    for method, its_own in methods.items():
        cells = [
            method,
            mean_and_std([result.last for result in its_own], '.2f'),
            mean_and_std([result.best for result in its_own], '.2f'),
            *(difference(last, method, reference) for reference in (SCRATCH, KD)),
            groups[method],
            str(len(its_own)),
            f'{statistics.mean(result.seconds for result in its_own) / 60:.1f}',
            f'{max(result.memory for result in its_own):,.0f} MB',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, ''])


def teacher_line(results: Sequence[Result]) -> str:
    """Return one line about the teacher of a pair."""
    taught = [result for result in results if result.method != SCRATCH]
    checkpoints = listed(r.teacher_checkpoint for r in taught if r.teacher_checkpoint)
    checksums = listed(r.teacher_sha256 for r in taught if r.teacher_sha256)
    accuracy = teacher_accuracy(results)
    return (
        f'Teacher: {"not measured" if accuracy is None else f"{accuracy:.2f} %"}'
        f'{f", {checkpoints}" if checkpoints else ""}'
        f'{f", SHA-256 {checksums}" if checksums else ""}.'
    )


def teacher_accuracy(results: Sequence[Result]) -> float | None:
    """Return the accuracy of the teacher of a pair, or None if it was not measured."""
    measured = [result.teacher for result in results if result.teacher is not None]
    return statistics.mean(measured) if measured else None


def difference(last: dict[str, dict[int, float]], method: str, reference: str) -> str:
    """Return the paired difference of two methods as text; empty if there is none."""
    if method == reference or reference not in last:
        return ''
    found = paired_difference(last[method], last[reference])
    return '' if found is None else str(found)


def footer(results: Sequence[Result]) -> list[str]:
    """Return how to reproduce the results: commands, commit, versions, device, seeds, date."""
    modules = ', '.join(
        ' or '.join(
            version if module in version else f'{module} {version}'
            for version in group(results, module)
        )
        for module in ('python', *MODULES)
    )
    dates = sorted(result.finished[:10] for result in results)
    return [
        '## Reproduce',
        '',
        *(f'    {command}' for command in commands(results)),
        '',
        f'- seeds: {listed(sorted({result.seed for result in results}))}',
        f'- commit: {listed(result.commit for result in results)}',
        f'- versions: {modules}',
        f'- device: {listed(result.device for result in results)}',
        f'- date: {dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"}',
        "- minutes: from the Runner's start to its last log",
        '- peak memory: allocated by PyTorch on the GPU or, without a GPU, of the process',
    ]


def listed(values) -> str:
    """Return the distinct values as text."""
    return ', '.join(dict.fromkeys(map(str, values)))


def commands(results: Sequence[Result]) -> list[str]:
    """Return the commands that reproduce the results; pairs with equal methods share one."""
    pairs: dict[tuple, list[str]] = {}
    for its_own in group(results, 'pair').values():
        methods = tuple(group(its_own, 'method_argument'))
        options = tuple(dict.fromkeys(r.cfg_options for r in its_own if r.cfg_options))
        seeds = max(result.seed for result in its_own) + 1
        pairs.setdefault((methods, seeds, options), []).append(its_own[0].pair_argument)
    return [
        f'python tools/benchmark.py --pairs {shlex.join(names)} --methods {shlex.join(methods)} '
        f'--seeds {seeds}' + ''.join(f' --cfg-options {text}' for text in options)
        for (methods, seeds, options), names in pairs.items()
    ]


@apply_style()
def draw(results: Sequence[Result], path: Path) -> None:
    """Draw a panel per pair: the accuracy of each seed and the mean of each method."""
    pairs = group(results, 'pair')
    most = max(len(group(its_own, 'method')) for its_own in pairs.values())
    width = max(5, 2 + 0.5 * most)
    figure = Figure(figsize=(width, 4.5 * len(pairs)), layout='constrained')
    panels = figure.subplots(len(pairs), squeeze=False).flat
    for panel, (pair, its_own) in zip(panels, pairs.items(), strict=True):
        draw_pair(panel, pair, its_own)
    figure.savefig(path, dpi=120)


def draw_pair(axes: Axes, pair: str, results: Sequence[Result]) -> None:
    """Draw the methods of a pair, with a line for the student alone.

    The teacher's accuracy is in the title: a line far above would compress the range of the
    methods.
    """
    methods = group(results, 'method')
    for place, its_own in enumerate(methods.values()):
        values = [result.last for result in its_own]
        std = statistics.stdev(values) if len(values) > 1 else 0
        # The legend lists each label once.
        labels = ('one seed', 'mean ± std') if place == 0 else (None, None)
        style = dict(color=COLORS[0], alpha=0.5, markersize=5, label=labels[0])
        axes.plot([place] * len(values), values, 'o', **style)
        mean = statistics.mean(values)
        axes.errorbar(place, mean, std, fmt='_', color=INK, capsize=6, label=labels[1])
    if SCRATCH in methods:
        alone = statistics.mean(result.last for result in methods[SCRATCH])
        axes.axhline(alone, color=COLORS[7], linestyle=':', label=f'student alone, {alone:.2f} %')
    axes.set_xticks(range(len(methods)), methods, rotation=45, ha='right')
    axes.set_xlim(-0.5, len(methods) - 0.5)
    teacher = teacher_accuracy(results)
    title = pair if teacher is None else f'{pair}, teacher {teacher:.2f} %'
    axes.set(title=title, ylabel='top-1 accuracy after the last epoch, %')
    axes.grid(axis='y')
    axes.legend()
