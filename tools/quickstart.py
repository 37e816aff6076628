"""The main job in minutes: a ViT teaches MobileNetV2 to read handwritten digits.

    python tools/quickstart.py [--seeds N] [--epochs N]

Trains the teacher on all 1,200 training images, and the student on 10 of each class, alone and with
MLDR-KD from the same seeds. Each is a run of ``tools/train.py`` on a config of
``configs/quickstart/``; one run a core goes on at a time. Ends with a table and a picture of what
the runs logged, in work_dirs/quickstart, where they replace those of an earlier quickstart.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
WORK_DIR = Path('work_dirs/quickstart')
LABELS = {
    'teacher': 'teacher, all 1,200 images',
    'scratch': 'student alone, 10 a class',
    'mldr': 'MLDR-KD, 10 a class',
}
COLORS = {'scratch': 'tab:orange', 'mldr': 'tab:blue'}
# The student's heads that MLDR-KD compares with the teacher, as the Distiller logs them.
HEADS = {
    'logits': 'tab:blue',
    'fused': 'black',
    'stage1': 'tab:green',
    'stage2': 'tab:olive',
    'stage3': 'tab:red',
    'stage4': 'tab:purple',
}
ACCURACY = 'accuracy/top1'


class RunFailed(Exception):
    """A run ended with an error; the message is one line."""


@dataclass(frozen=True)
class Run:
    """One run of ``tools/train.py``. What is known of it is what its Runner logs."""

    method: str
    seed: int
    epochs: int

    @property
    def name(self) -> str:
        return 'teacher' if self.method == 'teacher' else f'{self.method}_seed{self.seed}'

    @property
    def work_dir(self) -> Path:
        return WORK_DIR / self.name

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / f'epoch_{self.epochs}.pth'

    def train(self, *options: str) -> None:
        """Run to the end, with these ``--cfg-options`` beside its own.

        Raises:
            RunFailed: If it does not get there.
        """
        self.work_dir.mkdir(parents=True)
        output = self.work_dir / 'output.txt'
        with output.open('w') as file:
            code = subprocess.call(
                [
                    *(sys.executable, ROOT / 'tools/train.py', config_path(self.method)),
                    *('--work-dir', self.work_dir, '--cfg-options'),
                    *(f'randomness.seed={self.seed}', f'train_cfg.max_epochs={self.epochs}'),
                    *options,
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                # The runs share the cores; more threads than that would only wait for each other.
                env=os.environ | {'OMP_NUM_THREADS': '1'},
            )
        if code != 0:
            last = (output.read_text().splitlines() or [''])[-1]
            raise RunFailed(f'{self.name} ended with code {code}, see {output}: {last}')

    def curve(self, key: str) -> dict[int, float]:
        """What the Runner logged so far under a name: epoch -> value."""
        return {
            # Training is logged by iteration, validation by epoch.
            record.get('epoch', record['step']): record[key]
            for record in self._records()
            if key in record
        }

    def _records(self) -> list[dict]:
        logs = list(self.work_dir.glob('*/vis_data/scalars.json'))
        lines = logs[0].read_text().splitlines(keepends=True) if logs else []
        # The last line may be half written.
        return [json.loads(line) for line in lines if line.endswith('\n')]


def config_path(method: str) -> Path:
    """Return the path of the config that trains a method."""
    return ROOT / f'configs/quickstart/{method}.py'


def plan(seeds: int, epochs: int | None) -> list[Run]:
    """Return all runs, the teacher first."""

    def run(method: str, seed: int) -> Run:
        configured = Config.fromfile(config_path(method)).train_cfg.max_epochs
        return Run(method, seed, epochs or configured)

    students = [run(method, seed) for method in ('scratch', 'mldr') for seed in range(seeds)]
    return [run('teacher', 0), *students]


def train_all(runs: list[Run], console: Console) -> None:
    """Run all, as many at a time as there are cores, and show how far they are.

    Raises:
        RunFailed: If one of them fails; those that have not begun never do.
    """
    teacher, *students = runs
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        taught = pool.submit(teacher.train)

        def train(run: Run) -> None:
            if run.method == 'mldr':
                taught.result()
                run.train(f'model.teacher_checkpoint={teacher.checkpoint}')
            else:
                run.train()

        futures = {taught: teacher} | {pool.submit(train, run): run for run in students}
        try:
            show_progress(futures, console)
        finally:
            pool.shutdown(cancel_futures=True)


def show_progress(futures: dict[Future, Run], console: Console) -> None:
    """Show a bar for each run until all have ended; where there is no terminal, a line at its end.

    Raises:
        RunFailed: If one of them fails.
    """
    columns = [
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('epochs  {task.fields[accuracy]}'),
    ]
    unfinished = dict(futures)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {
            run: progress.add_task(run.name, total=run.epochs, accuracy='')
            for run in futures.values()
        }
        while unfinished:
            ended, _ = wait(unfinished, timeout=0.5, return_when=FIRST_COMPLETED)
            for run, bar in bars.items():
                epoch = max(run.curve('loss'), default=0)
                progress.update(bar, completed=epoch, accuracy=latest_accuracy(run))
            for future in ended:
                run = unfinished.pop(future)
                future.result()
                if not console.is_terminal:
                    console.print(f'{run.name}: {run.epochs} epochs, {latest_accuracy(run)}')


def latest_accuracy(run: Run) -> str:
    """Return the accuracy that the run logged last, as text."""
    accuracies = list(run.curve(ACCURACY).values())
    return f'{accuracies[-1]:.1f} %' if accuracies else ''


def by_method(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the runs of each method."""
    return {method: [run for run in runs if run.method == method] for method in LABELS}


def make_table(runs: list[Run]) -> Table:
    """Return the accuracies of each method, over its seeds."""
    seeds = len(by_method(runs)['mldr'])
    table = Table(
        title=f'Top-1 accuracy on the 597 test images, %\nmean ± std, number of seeds: {seeds}'
    )
    table.add_column('trained')
    table.add_column('last epoch', justify='right')
    table.add_column('best epoch', justify='right')
    for method, its_runs in by_method(runs).items():
        accuracies = [list(run.curve(ACCURACY).values()) for run in its_runs]
        last = mean_and_std([values[-1] for values in accuracies])
        best = mean_and_std([max(values) for values in accuracies])
        table.add_row(LABELS[method], last, best)
    return table


def mean_and_std(values: list[float]) -> str:
    """Return ``mean ± std`` as text, or the value if there is only one."""
    mean = f'{statistics.mean(values):.1f}'
    return f'{mean} ± {statistics.stdev(values):.1f}' if len(values) > 1 else mean


def draw_picture(runs: list[Run], path: Path) -> None:
    """Draw accuracy, losses and fusion weights over the epochs, and save them as an image."""
    runs_of = by_method(runs)
    figure = Figure(figsize=(11, 8), layout='constrained')
    figure.suptitle(
        'A ViT teaches MobileNetV2 to read digits: '
        f'mean and standard deviation, number of seeds: {len(runs_of["mldr"])}'
    )
    (accuracy, own_loss), (dfra, fusion) = figure.subplots(2, 2)

    accuracy.set(title='Accuracy on the test images', ylabel='top-1 accuracy, %')
    teacher = list(runs_of['teacher'][0].curve(ACCURACY).values())[-1]
    accuracy.axhline(teacher, color='black', linestyle='--', label=f'teacher ({teacher:.1f} %)')
    own_loss.set(title="The student's own loss in training", ylabel='cross-entropy')
    for method in ('scratch', 'mldr'):
        style = dict(label=LABELS[method], color=COLORS[method])
        draw_curve(accuracy, runs_of[method], ACCURACY, **style)
        draw_curve(own_loss, runs_of[method], 'loss', **style)

    dfra.set(title='MLDR-KD: DFRA to the teacher, by head', ylabel='DFRA', yscale='log')
    dfra.yaxis.set_major_formatter('{x:g}')
    dfra.yaxis.set_minor_formatter('{x:g}')
    fusion.set(title='MLDR-KD: weights of the fused logits', ylabel='mean fusion weight')
    for head, color in HEADS.items():
        draw_curve(dfra, runs_of['mldr'], f'loss_dfra_{head}', label=head, color=color)
        if head.startswith('stage'):
            draw_curve(fusion, runs_of['mldr'], f'fusion_{head}', label=head, color=color)

    for axes in (accuracy, own_loss, dfra, fusion):
        axes.set_xlabel('epoch')
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def draw_curve(axes: Axes, runs: list[Run], key: str, label: str, color: str) -> None:
    """Draw the mean of what the runs logged under a name, in a band of one standard deviation."""
    curves = [run.curve(key) for run in runs]
    epochs = list(curves[0])
    values = np.array([list(curve.values()) for curve in curves])
    mean = values.mean(0)
    std = values.std(0, ddof=1) if len(runs) > 1 else np.zeros_like(mean)
    axes.plot(epochs, mean, label=label, color=color, marker='.', markersize=4)
    axes.fill_between(epochs, mean - std, mean + std, color=color, alpha=0.2, linewidth=0)


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(description='Distil a ViT into MobileNetV2 on handwritten digits.')
    parser.add_argument(
        '--seeds', type=positive, default=4, help='runs of each student; default: 4'
    )
    parser.add_argument('--epochs', type=positive, help='of each run; default: what its config has')
    return parser.parse_args(argv)


def positive(text: str) -> int:
    """Return a number of 1 or more that an argument holds."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f'must be a number of 1 or more, got {text!r}')
    return int(text)


def main(argv: list[str] | None = None) -> None:
    """Train, then show what came out; a run that fails ends it in one line and exit code 1."""
    args = parse_args(argv)
    console = Console(highlight=False)
    start = time.monotonic()
    shutil.rmtree(WORK_DIR, ignore_errors=True)
    runs = plan(args.seeds, args.epochs)
    console.print(f'{len(runs)} runs, each with its log in {WORK_DIR}:')
    try:
        train_all(runs, console)
    except RunFailed as error:
        sys.exit(f'error: {error}')
    picture = WORK_DIR / 'curves.png'
    draw_picture(runs, picture)
    console.print(make_table(runs))
    console.print(f'picture: {picture}')
    console.print(f'took {time.monotonic() - start:.0f} s')


if __name__ == '__main__':
    main()
