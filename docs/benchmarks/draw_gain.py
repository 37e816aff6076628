"""Draw the accuracy of a student alone and distilled, beside its teacher, from logs.tar.gz.

    python docs/benchmarks/draw_gain.py [PATH]

Writes docs/benchmarks/gain.svg, the picture of the README and of the documentation's home page.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import numpy as np

from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.visualization.figures import draw_curves, to_svg
from mldr_kd_mm.visualization.style import COLORS

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


def draw(path: Path) -> Path:
    """Draw the picture on a transparent ground; return its path."""
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
    path.write_text(to_svg(figure).replace('currentColor', _GREY))
    return path


if __name__ == '__main__':
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / 'gain.svg')
