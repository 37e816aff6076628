"""Draw the pictures of README.md and docs/benchmarks.md from logs.tar.gz and results.csv.

    python docs/benchmarks/draw_gain.py

Writes gain.svg, the accuracy of a student alone and distilled beside its teacher, and methods.svg,
the accuracy of all methods. Both are legible on white and on black.
"""

from __future__ import annotations

import json
import runpy
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.visualization.figures import draw_curves, to_svg
from mldr_kd_mm.visualization.style import COLORS, INK, apply_style

HERE = Path(__file__).parent
# Label -> folder of the logs of three seeds.
RUNS = {'student alone': 'scratch', 'KD': 'kd', 'MLDR-KD': 'mldr'}
_PAIR = 'logs/vit_to_resnet18_c20'
_GREY = '#768390'  # legible on white and on black

Curve = dict[int, float]


def read_runs() -> tuple[dict[str, Curve], dict[str, tuple[Curve, Curve]], float]:
    """Return the mean curve of each label, the edges of its band, and the teacher's accuracy."""
    curves, bands, teacher = {}, {}, 0.0
    with tarfile.open(HERE / 'logs.tar.gz') as archive:
        for label, folder in RUNS.items():
            seeds = []
            for seed in range(3):
                text = archive.extractfile(f'{_PAIR}/{folder}/seed{seed}.json').read().decode()
                records = [json.loads(line) for line in text.splitlines()]
                seeds.append({r['step']: r[ACCURACY] for r in records if ACCURACY in r})
                teacher = next(
                    (r[t] for r in records if (t := f'teacher/{ACCURACY}') in r), teacher
                )
            values = np.array([[*curve.values()] for curve in seeds])
            mean, std = values.mean(0), values.std(0, ddof=1)
            curves[label], low, high = (
                dict(zip(seeds[0], map(float, edge), strict=True))
                for edge in (mean, mean - std, mean + std)
            )
            bands[label] = (low, high)
    return curves, bands, teacher


def draw_gain() -> Figure:
    """Return the curves of the student alone, with KD and with MLDR-KD."""
    curves, bands, teacher = read_runs()
    figure = draw_curves(
        curves,
        'ResNet18 taught by a ViT, three seeds',
        'top-1 accuracy, %',
        {f'teacher, {teacher:.1f} %': teacher},
        bands=bands,
        colors=[_GREY, COLORS[1], COLORS[0]],
    )
    figure.set_size_inches(6, 3.4)
    return figure


@apply_style()
def draw_methods() -> Figure:
    """Return a panel per pair: each seed of each method, sorted by the mean."""
    tables = runpy.run_path(str(HERE / 'write_tables.py'))
    rows, is_ablation = tables['read']('results'), tables['ABLATIONS'].fullmatch
    figure = Figure(figsize=(8, 4), layout='constrained')
    for axes, (pair, name) in zip(figure.subplots(1, 2), tables['PAIRS'].items(), strict=True):
        seeds = defaultdict(list)
        for row in rows:
            if row['pair'] == pair and not is_ablation(row['method']):
                seeds[row['method']].append(float(row['last']))
        order = sorted(seeds, key=lambda method: np.mean(seeds[method]))
        for place, method in enumerate(order):
            color = COLORS[0] if method.startswith('mldr') else _GREY
            axes.scatter(seeds[method], [place] * len(seeds[method]), 14, color=color, alpha=0.5)
            axes.scatter(np.mean(seeds[method]), place, 60, color=color, marker='|')
        axes.axvline(np.mean(seeds['scratch']), color=INK, linestyle=(0, (6, 3)), linewidth=1)
        axes.set_yticks(range(len(order)), order)
        axes.set(title=name, xlabel='top-1 accuracy, %')
        axes.grid(axis='x')
    return figure


def draw_all(folder: Path) -> None:
    """Write both pictures into a folder, on a transparent background."""
    for name, figure in (('gain', draw_gain()), ('methods', draw_methods())):
        (folder / f'{name}.svg').write_text(to_svg(figure).replace('currentColor', _GREY))


if __name__ == '__main__':
    draw_all(HERE)
