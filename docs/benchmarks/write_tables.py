"""Write the results of each method into configs/METHOD/README.md.

    python docs/benchmarks/write_tables.py

Reads results.csv, which tools/benchmark.py wrote, and published.csv, the numbers of the papers.
"""

from __future__ import annotations

import csv
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
VARIANTS = {
    'kd': ('kd', 'kd_t4'),
    'ofa': ('ofa', 'ofa_cnn'),
    'mldr': ('mldr', 'mldr_ls', 'mldr_rsd'),
}
BLOCK = re.compile(r'(<!-- results: [^\n]*-->\n).*(<!-- end of results -->)', re.DOTALL)

Rows = list[dict[str, str]]


def main() -> None:
    """Write the tables into all READMEs."""
    for path in sorted(ROOT.glob('configs/*/README.md')):
        path.write_text(with_results(path.read_text(), path.parent.name))


def with_results(readme: str, method: str) -> str:
    """Return the text of a README with the current results of its method."""
    tables = f'{measured_table(method)}\n{published_table(method)}'
    return BLOCK.sub(lambda match: f'{match[1]}\n{tables}\n{match[2]}', readme)


def measured_table(method: str) -> str:
    """Return the table of what this project measured."""
    rows = read('results')
    names = [v for v in VARIANTS.get(method, (method,)) if any(r['method'] == v for r in rows)]
    if not names:
        return 'Not measured in this project yet.\n'
    pairs = list(dict.fromkeys(row['pair'] for row in rows))
    table = [['', *(f'`{pair}`' for pair in pairs)], [':--', *('--:' for _ in pairs)]]
    table.append(['teacher', *(accuracy(rows, pair, name='teacher') for pair in pairs)])
    table.append(['student alone', *(accuracy(rows, pair, 'scratch') for pair in pairs)])
    table += [[f'`{name}`', *(accuracy(rows, pair, name) for pair in pairs)] for name in names]
    seeds = len({row['seed'] for row in rows})
    return (
        'Measured: top-1 accuracy after the last epoch in %, mean ± standard deviation of '
        f'{seeds} seeds, on\n20 classes of CIFAR-100 at 32 px (docs/benchmarks.md).\n\n'
        f'{markdown(table)}'
    )


def published_table(method: str) -> str:
    """Return the table of the papers' numbers."""
    rows = [row for row in read('published') if row['method'] == method]
    if not rows:
        return 'No published numbers for the pairs of this project are known.\n'
    table = [['pair', 'teacher', 'student alone', method, 'source']]
    table.append([':--', '--:', '--:', '--:', ':--'])
    for row in rows:
        name = f'`{row["pair"]}`'
        table.append([name, row['teacher'], row['student_alone'], row['accuracy'], row['source']])
    return (
        'Published: top-1 accuracy on CIFAR-100 at 224 px in %, not reproduced here.\n\n'
        f'{markdown(table)}'
    )


def accuracy(rows: Rows, pair: str, method: str | None = None, name: str = 'last') -> str:
    """Return the mean and standard deviation over the seeds, or the teacher's one value."""
    its_own = [row for row in rows if row['pair'] == pair and method in (None, row['method'])]
    values = [float(row[name]) for row in its_own if row[name]]
    mean = f'{statistics.mean(values):.2f}'
    return mean if name == 'teacher' else f'{mean} ± {statistics.stdev(values):.2f}'


def markdown(table: list[list[str]]) -> str:
    """Return a table as Markdown."""
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in table)


def read(name: str) -> Rows:
    """Return the rows of a results file."""
    with Path(__file__).with_name(f'{name}.csv').open(newline='') as file:
        return list(csv.DictReader(file))


if __name__ == '__main__':
    main()
