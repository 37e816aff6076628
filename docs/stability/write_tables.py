"""Write the tables of docs/stability.md.

    python docs/stability/write_tables.py

Reads the runs of benchmarks/stability.py (rows.jsonl), whole runs on two classes
(two_classes.jsonl), on digits (digits.jsonl) and on the benchmark's pairs (pairs.jsonl).
"""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Any

from mldr_kd_mm.evaluation.statistics import paired_difference

HERE = Path(__file__).parent
PAGE = HERE.with_suffix('.md')
BLOCK = re.compile(r'(<!-- results: [^\n]*-->\n).*?(<!-- end of results -->)', re.DOTALL)
STUDENTS = {
    'resnet18': 'ResNet18',
    'mobilenetv2_100': 'MobileNetV2',
    'mobilenetv3_small_100': 'MobileNetV3-S',
    'efficientnet_b0': 'EfficientNet-B0',
    'convnext_tiny': 'ConvNeXt-T',
    'vit_tiny_patch16_224': 'ViT-Ti',
}
CLASSES, BATCHES, RATES = (2, 3, 5, 10, 20, 100), (16, 32, 128), (0.3, 1.0, 3.0)
DIGITS = 'quickstart on digits, 80 epochs'
CNN_STUDENT = 'vit_to_resnet18_cifar100-20cls'

Run = dict[str, Any]


def main() -> None:
    """Write the page."""
    PAGE.write_text(written_page())


def written_page() -> str:
    """Return the text of the page with tables of the current results."""
    tables = iter([first_steps(), whole_runs(), accuracies()])
    return BLOCK.sub(lambda match: f'{match[1]}\n{next(tables)}\n{match[2]}', PAGE.read_text())


def first_steps() -> str:
    """Return which runs diverged, and a table of those in the paper's form."""
    runs = read('rows.jsonl')
    bounded, with_rsd = (
        [run for run in runs if run['method'] == method and run['hooks']]
        for method in ('mldr', 'mldr_rsd')
    )
    paper = [run for run in runs if run['method'] == 'mldr_paper']
    found = {place(run): outcome(run) for run in paper}
    lines = [['Classes', 'Batch', *STUDENTS.values()], ['--:', '--:', *[':--'] * len(STUDENTS)]]
    for classes in CLASSES:
        for batch in BATCHES:
            places = [[(classes, batch, rate, name) for rate in RATES] for name in STUDENTS]
            cells = [' / '.join(found[each] for each in some) for some in places]
            lines.append([f'{classes}', f'{batch}', *cells])
    usual = Counter(place(run)[0] for run in paper if run['diverged'] and run['rate'] == 1)
    explained = (
        f"{summary(paper)} At the recipe's rate: {', '.join(f'{usual[n]}' for n in CLASSES)} of "
        f'{len(BATCHES) * len(STUDENTS)} with {", ".join(map(str, CLASSES))} classes. The table '
        'has the step of divergence at 0.3, 1 and 3 times the rate; "-" is a stable run.'
    )
    items = (
        f'**`mldr`:** {summary(bounded)}',
        f"**`mldr_rsd`:** {summary(with_rsd)} They have batches of 16, the recipe's rate with all "
        'numbers of classes, and 3 times that with 2 and 3.',
        f'**Paper:** {explained}',
    )
    bullets = [fill(f'- {item}', width=100, subsequent_indent='  ') for item in items]
    return '\n'.join([*bullets, '', markdown(lines)])


def whole_runs() -> str:
    """Return a table of the accuracies after whole runs on two classes."""
    runs = [run for run in read('two_classes.jsonl') if 'bound' not in run and run['seed'] == 0]
    last = {run['model']: run['accuracy'][-1] for run in runs if run['role'] == 'student'}
    (teacher,) = [run['accuracy'][-1] for run in runs if run['role'] == 'teacher']
    names = ['teacher, ResNet18', *STUDENTS.values()]
    return markdown(
        [names, ['--:'] * len(names), [f'{teacher:.1f}'] + [f'{last[m]:.1f}' for m in STUDENTS]]
    )


def accuracies() -> str:
    """Return a table of the accuracies of ``mldr`` and of the paper's form."""
    runs = {
        DIGITS: read('digits.jsonl'),
        f'`{CNN_STUDENT}`, 25 epochs': [r for r in read('pairs.jsonl') if r['pair'] == CNN_STUDENT],
    }
    head = ['Run', 'Seeds', '`mldr_paper`, no clipping', '`mldr`, clipping', 'Difference']
    lines = [head, [':--', *['--:'] * 4]]
    for name, some in runs.items():
        bounded = {run['seed']: run['last'] for run in some if run.get('clip') == 'adaptive'}
        paper = {run['seed']: run['last'] for run in some if run['method'] == 'mldr_paper'}
        paper = {seed: paper[seed] for seed in bounded}
        difference = paired_difference(bounded, paper)
        means = [f'{statistics.fmean(each.values()):.2f}' for each in (paper, bounded)]
        lines.append([name, f'{len(bounded)}', *means, f'{difference}'])
    return markdown(lines)


def read(name: str) -> list[Run]:
    """Return the runs of a file."""
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def place(run: Run) -> tuple[int, int, float, str]:
    """Return number of classes, batch size, rate and student of a run."""
    return int(Path(run['data']).name), run['batch_size'], run['rate'], run['student']


def outcome(run: Run) -> str:
    """Return the step at which a run diverged, or "-"."""
    return f'{run["finite_steps"] + 1}' if run['diverged'] else '-'


def summary(runs: list[Run]) -> str:
    """Return how many runs diverged."""
    return f'{sum(run["diverged"] for run in runs)} of {len(runs)} runs diverged.'


def markdown(lines: Iterable[list[str]]) -> str:
    """Return a table."""
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


if __name__ == '__main__':
    main()
