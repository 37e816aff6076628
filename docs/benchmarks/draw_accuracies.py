"""Draw the accuracy of each seed of each method, from the results of both comparisons.

    python docs/benchmarks/draw_accuracies.py

Writes docs/tuned_comparison/methods.svg, the picture of README.md and the tuned comparison, and
docs/benchmarks/methods.svg. Both are legible on white and on black.
"""

from __future__ import annotations

import runpy
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mldr_kd_mm.visualization.figures import to_svg
from mldr_kd_mm.visualization.style import COLORS, INK, apply_style

DOCS = Path(__file__).parents[1]
_GREY = '#768390'  # legible on white and on black

Rows = list[dict[str, str]]


def draw_pictures() -> dict[str, Figure]:
    """Return the path of each picture under docs/ and the picture."""
    tables = runpy.run_path(str(Path(__file__).with_name('write_tables.py')))
    is_ablation = tables['ABLATIONS'].fullmatch
    rows = [row for row in tables['read']('results') if not is_ablation(row['method'])]
    benchmarks = {
        name: [row for row in rows if row['pair'] == pair] for pair, name in tables['PAIRS'].items()
    }
    tuned = {name: tables['read_tuned'](pair) for pair, name in tables['STUDENTS'].items()}
    return {
        'benchmarks/methods.svg': draw_methods(benchmarks, (8, 4), {}),
        'tuned_comparison/methods.svg': draw_methods(tuned, (9, 2.6), tables['LABELS']),
    }


@apply_style()
def draw_methods(
    results: dict[str, Rows], size: tuple[float, float], labels: Mapping[str, str]
) -> Figure:
    """Return a panel per pair: each seed of each method, sorted by the mean.

    Args:
        results: Title of a panel -> result of each run.
        size: Width and height of the figure in inches.
        labels: Method -> label; a method that is not in it has its name.
    """
    figure = Figure(figsize=size, layout='constrained')
    for axes, (name, rows) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        seeds = defaultdict(list)
        for row in rows:
            seeds[row['method']].append(float(row['last']))
        order = sorted(seeds, key=lambda method: np.mean(seeds[method]))
        for place, method in enumerate(order):
            color = COLORS[0] if method.startswith('mldr') else _GREY
            axes.scatter(seeds[method], [place] * len(seeds[method]), 14, color=color, alpha=0.5)
            axes.scatter(np.mean(seeds[method]), place, 60, color=color, marker='|')
        axes.axvline(np.mean(seeds['scratch']), color=INK, linestyle=(0, (6, 3)), linewidth=1)
        axes.set_yticks(range(len(order)), [labels.get(method, method) for method in order])
        axes.set(title=name, xlabel='top-1 accuracy, %')
        axes.grid(axis='x')
    return figure


def draw_all(docs: Path) -> None:
    """Write the pictures into a folder, on a transparent background."""
    for name, figure in draw_pictures().items():
        (docs / name).write_text(to_svg(figure).replace('currentColor', _GREY))


if __name__ == '__main__':
    draw_all(DOCS)
