"""MLDR-KD in minutes: a ViT teaches MobileNetV2 to read handwritten digits.

    python tools/quickstart.py [--seeds N] [--epochs N]

Trains the teacher on all 1,200 training images, and the student on 10 images per class, alone and
with MLDR-KD from the same seeds. Each run is ``tools/train.py`` with a config of
``configs/quickstart/``, and one run per core is active at a time. The results, a table and a figure
of the logged curves, replace those of an earlier quickstart in work_dirs/quickstart.
"""

from __future__ import annotations

import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mldr_kd_mm.engine.arguments import positive
from mldr_kd_mm.engine.processes import (
    Run,
    RunFailed,
    RunQueue,
    check_code,
    exit_when_stopped,
    places,
    train_all,
)
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.evaluation.measures import mean_and_std
from mldr_kd_mm.visualization.style import COLORS, INK, apply_style

ROOT = Path(__file__).resolve().parents[1]
WORK_DIR = Path('work_dirs/quickstart')
LABELS = {
    'teacher': 'teacher, all 1,200 images',
    'scratch': 'student alone, 10 per class',
    'mldr': 'MLDR-KD, 10 per class',
}
METHOD_COLORS = {'scratch': COLORS[1], 'mldr': COLORS[0]}
# The student's heads in MLDR-KD, under the names that the Distiller logs.
HEADS = {
    'logits': COLORS[0],
    'fused': INK,
    'stage1': COLORS[1],
    'stage2': COLORS[2],
    'stage3': COLORS[3],
    'stage4': COLORS[4],
}


@dataclass(eq=False)
class QuickRun(Run):
    """A run of the quickstart: the teacher, or a student alone or distilled."""

    method: str
    seed: int

    def arguments(self) -> list[str]:
        options = [f'randomness.seed={self.seed}', f'train_cfg.max_epochs={self.epochs}']
        if self.needs:
            checkpoint = self.needs.work_dir / f'epoch_{self.needs.epochs}.pth'
            options.append(f'model.teacher_checkpoint={checkpoint}')
        return ['--cfg-options', *options]


def plan(seeds: int, epochs: int | None) -> list[QuickRun]:
    """Return all runs, the teacher first."""

    def run(method: str, seed: int, needs: Run | None = None) -> QuickRun:
        config = ROOT / f'configs/quickstart/{method}.py'
        configured = Config.fromfile(config).train_cfg.max_epochs
        name = 'teacher' if method == 'teacher' else f'{method}_seed{seed}'
        return QuickRun(name, config, WORK_DIR / name, epochs or configured, needs, method, seed)

    teacher = run('teacher', 0)
    alone = [run('scratch', seed) for seed in range(seeds)]
    return [teacher, *alone, *(run('mldr', seed, needs=teacher) for seed in range(seeds))]


def by_method(runs: list[QuickRun]) -> dict[str, list[QuickRun]]:
    """Return the runs by method."""
    return {method: [run for run in runs if run.method == method] for method in LABELS}


def make_table(runs: list[QuickRun]) -> Table:
    """Return a table of the accuracies of each method over its seeds."""
    seeds = len(by_method(runs)['mldr'])
    table = Table(
        title=f'Top-1 accuracy on the 597 test images, %\nmean ± std, number of seeds: {seeds}'
    )
    table.add_column('trained')
    table.add_column('last epoch', justify='right')
    table.add_column('best epoch', justify='right')
    for method, its_runs in by_method(runs).items():
        accuracies = [list(run.curve(ACCURACY).values()) for run in its_runs]
        last = mean_and_std([values[-1] for values in accuracies], '.1f')
        best = mean_and_std([max(values) for values in accuracies], '.1f')
        table.add_row(LABELS[method], last, best)
    return table


@apply_style()
def draw_picture(runs: list[QuickRun], path: Path) -> None:
    """Save a figure of accuracy, losses and fusion weights over the epochs."""
    runs_of = by_method(runs)
    figure = Figure(figsize=(11, 8), layout='constrained')
    figure.suptitle(
        'A ViT teaches MobileNetV2 to read digits: '
        f'mean and standard deviation, number of seeds: {len(runs_of["mldr"])}'
    )
    (accuracy, own_loss), (dfra, fusion) = figure.subplots(2, 2)

    accuracy.set(title='Accuracy on the test images', ylabel='top-1 accuracy, %')
    teacher = list(runs_of['teacher'][0].curve(ACCURACY).values())[-1]
    accuracy.axhline(teacher, color=INK, linestyle='--', label=f'teacher ({teacher:.1f} %)')
    own_loss.set(title="The student's own loss in training", ylabel='cross-entropy')
    for method in ('scratch', 'mldr'):
        style = dict(label=LABELS[method], color=METHOD_COLORS[method])
        draw_curve(accuracy, runs_of[method], ACCURACY, **style)
        own = 'loss_student' if method == 'mldr' else 'loss'
        draw_curve(own_loss, runs_of[method], own, **style)

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
        axes.grid()
        axes.legend()
    figure.savefig(path, dpi=120)


def draw_curve(axes: Axes, runs: list[QuickRun], key: str, label: str, color: str) -> None:
    """Draw the mean of a logged value with a band of one standard deviation."""
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
        '--seeds', type=positive, default=4, help='number of runs of each student; default: 4'
    )
    parser.add_argument(
        '--epochs', type=positive, help='epochs of each run; default: those of its config'
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Train and show the results; a failed run prints one line and exits with code 1."""
    args = parse_args(argv)
    console = Console(highlight=False, markup=False)
    start = time.monotonic()
    shutil.rmtree(WORK_DIR, ignore_errors=True)
    runs = plan(args.seeds, args.epochs)
    console.print(f'{len(runs)} runs, with logs in {WORK_DIR}:')
    try:
        with exit_when_stopped():
            train_all(RunQueue(runs, on_end=check_code), places(), console)
    except RunFailed as error:
        sys.exit(f'error: {error}')
    picture = WORK_DIR / 'curves.png'
    draw_picture(runs, picture)
    console.print(make_table(runs))
    console.print(f'picture: {picture}')
    console.print(f'took {time.monotonic() - start:.0f} s')


if __name__ == '__main__':
    main()
