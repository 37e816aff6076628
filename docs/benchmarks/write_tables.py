"""Write all tables of results: README.md, docs/*.md and each configs/METHOD/README.md.

    python docs/benchmarks/write_tables.py

Reads results.csv and tries*.csv, which tools/benchmark.py wrote, published.csv, the numbers of the
papers, and, in docs/tuned_comparison/, the results and the study of each pair that `mldr-kd tune`
wrote.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

import optuna

from mldr_kd_mm.apis.search_space import short
from mldr_kd_mm.evaluation.statistics import paired_difference, rank_groups

ROOT = Path(__file__).parents[2]
TUNED = ROOT / 'docs/tuned_comparison'
TOKEN_STUDENT = 'resnet18_to_vit_cifar100-20cls'
CNN_STUDENT = 'vit_to_resnet18_cifar100-20cls'
MLP_STUDENT = 'resnet18_to_mixer_cifar100-20cls'
PAIRS = {TOKEN_STUDENT: 'ResNet18 teaches a ViT', CNN_STUDENT: 'A ViT teaches a ResNet18'}
TUNED_PAIRS = PAIRS | {MLP_STUDENT: 'ResNet18 teaches an MLP-Mixer'}
ABLATIONS = re.compile('mldr_(no-.*|features|logits)')
REFERENCES = {'vs alone': 'scratch', 'vs KD': 'kd'}
TUNED_REFERENCES = {'vs KD': 'kd', 'vs OFA': 'ofa', 'vs MLDR-KD': 'mldr'}
STUDENTS = {CNN_STUDENT: 'ResNet18', TOKEN_STUDENT: 'ViT', MLP_STUDENT: 'MLP-Mixer'}
LABELS = {
    'scratch': 'student alone',
    'kd': 'KD',
    'dkd': 'DKD',
    'dist': 'DIST',
    'ofa': 'OFA',
    'rsd': 'RSD',
    'mldr': 'MLDR-KD',
    'mldr_rsd': 'MLDR-KD with RSD',
}
SUMMARY = ('scratch', 'kd', 'ofa', 'mldr', 'mldr_rsd')
VARIANTS = {'mldr': ('mldr', 'mldr_rsd')}
# Row of docs/benchmarks.md -> method.
CHANGES = {
    'MLDR-KD': 'mldr',
    'no class relation': 'mldr_no-class',
    'no sample relation': 'mldr_no-sample',
    'no probability term': 'mldr_no-probability',
    'equal weights for all stages': 'mldr_no-gate',
    'stage and fused logits only': 'mldr_features',
    'final logits only': 'mldr_logits',
    'a tenth of all weights (`mldr_small`)': 'mldr_small',
    'a tenth of the weights of stage and fused logits (`mldr_small-stages`)': 'mldr_small-stages',
    'temperature 4 (`mldr_t4`)': 'mldr_t4',
    "RSD's loss added (`mldr_rsd`)": 'mldr_rsd',
    'standardised logits (`mldr_ls`)': 'mldr_ls',
}
BLOCK = re.compile(r'(<!-- results: [^\n]*-->\n).*?(<!-- end of results -->)', re.DOTALL)

Rows = list[dict[str, str]]


def main() -> None:
    """Write the tables into all pages and READMEs."""
    for path, text in written_pages().items():
        path.write_text(text)


def written_pages() -> dict[Path, str]:
    """Return the path of each page and its text with tables of the current results."""
    tables = {
        'README.md': [summary_table()],
        'docs/index.md': [summary_table()],
        'docs/benchmarks.md': [benchmark_tables(), changes_table(), learning_rate_table()],
        'docs/tuned_comparison.md': [tuned_tables()],
        'docs/results.md': [trained_tables(), untrained_tables()],
    }
    pages = {}
    for name, of_page in tables.items():
        text = (ROOT / name).read_text()
        if len(BLOCK.findall(text)) != len(of_page):
            raise ValueError(f'{name}: must have a block for each of {len(of_page)} tables')
        pages[ROOT / name] = fill(text, *of_page)
    for path in sorted(ROOT.glob('configs/*/README.md')):
        pages[path] = with_results(path.read_text(), path.parent.name)
    return pages


def with_results(readme: str, method: str) -> str:
    """Return the text of a README with tables of its method's current results."""
    return fill(readme, f'{results_table(method)}\n{published_table(method)}')


def fill(text: str, *tables: str) -> str:
    """Return a text with its results blocks replaced by the tables, in order."""
    following = iter(tables)
    return BLOCK.sub(lambda match: f'{match[1]}\n{next(following)}\n{match[2]}', text)


def summary_table() -> str:
    """Return the accuracy of each student with a few tuned methods, and its gain."""
    table = [['', *STUDENTS.values()], [':--', *('--:' for _ in STUDENTS)]]
    for method in SUMMARY:
        cells = [LABELS[method]]
        for pair in STUDENTS:
            rows = read_tuned(pair)
            gain = difference(rows, pair, method)
            cells.append(', '.join(filter(None, [f'{mean(rows, method, pair):.2f}', gain])))
        table.append(cells)
    return markdown(table)


def benchmark_tables() -> str:
    """Return a section per pair: methods by gain, then the ablations of MLDR-KD."""
    rows, sections = read('results'), []
    for pair, name in PAIRS.items():
        of_pair = [row for row in rows if row['pair'] == pair]
        methods = by_accuracy(of_pair)
        ablations = [method for method in methods if ABLATIONS.fullmatch(method)]
        others = [method for method in methods if method not in ablations]
        sections.append(
            f'{title(name, of_pair)}\n\n{methods_table(of_pair, others)}\n'
            f'Ablations of MLDR-KD:\n\n{methods_table(of_pair, ["mldr", *ablations])}'
        )
    return '\n'.join(sections)


def tuned_tables() -> str:
    """Return a section per pair of the tuned comparison: methods by gain, and their values."""
    sections = []
    for pair, name in TUNED_PAIRS.items():
        if rows := read_tuned(pair):
            methods = by_accuracy(rows)
            sections.append(
                f'{title(name, rows)}\n\n'
                f'{methods_table(rows, methods, {"vs alone": "scratch"})}\n'
                f'{differences_table(rows, methods)}\n'
                f'Best trial on the held-out images:\n\n{values_table(pair, methods)}'
            )
    return '\n'.join(sections)


def title(name: str, rows: Rows) -> str:
    """Return the title of a section on a pair, with a line about its teacher."""
    row = next(row for row in rows if row['teacher_sha256'])
    return (
        f'## {name}\n\n`{row["pair"]}`. Teacher: {float(row["teacher"]):.2f} %, '
        f'`{row["teacher_checkpoint"]}`, SHA-256 {row["teacher_sha256"][:12]}…'
    )


def by_accuracy(rows: Rows) -> list[str]:
    """Return the methods of a pair's runs, the one with the highest accuracy first."""
    methods = dict.fromkeys(row['method'] for row in rows)
    return sorted(methods, key=lambda method: -mean(rows, method, rows[0]['pair']))


def methods_table(rows: Rows, methods: list[str], references: dict[str, str] = REFERENCES) -> str:
    """Return a table of one row per method, of the runs of a pair."""
    table = [['Method', 'Last epoch', *references, 'Group', 'Minutes per run']]
    table.append([':--', '--:', *('--:' for _ in references), ':--', '--:'])
    pair = rows[0]['pair']
    groups = rank_groups({name: of for name, of in by_seed(rows, pair).items() if name in methods})
    for method in methods:
        seconds = [float(row['seconds']) for row in rows if row['method'] == method]
        table.append(
            [
                f'`{method}`',
                accuracy(rows, pair, method),
                *(difference(rows, pair, method, other) for other in references.values()),
                groups[method],
                f'{statistics.mean(seconds) / 60:.1f}',
            ]
        )
    return markdown(table)


def differences_table(rows: Rows, methods: list[str]) -> str:
    """Return a table of the differences between the methods of a tuned pair."""
    table = [['Method', 'Best epoch', *TUNED_REFERENCES]]
    table.append([':--', '--:', *('--:' for _ in TUNED_REFERENCES)])
    pair = rows[0]['pair']
    for method in methods:
        differences = (difference(rows, pair, method, other) for other in TUNED_REFERENCES.values())
        table.append([f'`{method}`', accuracy(rows, pair, method, 'best'), *differences])
    return markdown(table)


def values_table(pair: str, methods: list[str]) -> str:
    """Return a table of the values with which each method of a tuned pair was trained."""
    storage = f'sqlite:///{TUNED / pair}.db'
    table = [['Method', 'Accuracy', 'Of the first trial', 'Values'], [':--', '--:', '--:', ':--']]
    for method in methods:
        study = optuna.load_study(study_name=f'{pair}/{method}', storage=storage)
        first = study.trials[0]
        values = (
            f'`{re.sub("^(model|optim_wrapper.optimizer).", "", name)}` {short(value)}'
            for name, value in study.best_params.items()
        )
        start = first.state.name.lower() if first.value is None else f'{first.value:.1f}'
        cells = [start, ', '.join(values)]
        table.append([f'`{method}`', f'{study.best_value:.1f}', *cells])
    return markdown(table)


def trained_tables() -> str:
    """Return a table per pair that this project has trained, with a row per method."""
    rows, sections = read('results'), []
    for pair, name in PAIRS.items():
        of_pair = [row for row in rows if row['pair'] == pair]
        table = [['Config', 'Paper', 'Ours', 'Log'], [':--', '--:', '--:', ':--']]
        for method in dict.fromkeys(row['method'] for row in of_pair):
            log = f'{pair.replace("cifar100-20cls", "c20")}/{method}'
            ours = accuracy(rows, pair, method)
            table.append([f'`--method {method}`', '', ours, f'`{log}`'])
        epochs, seeds = ({row[key] for row in of_pair} for key in ('epochs', 'seed'))
        sections.append(
            f'**{name}**: `configs/pairs/{pair}.py`, {"/".join(epochs)} epochs, {len(seeds)} '
            f'seeds. Teacher {accuracy(rows, pair, name="teacher")}, student alone '
            f'{accuracy(rows, pair, "scratch")}.\n\n{markdown(table)}'
        )
    return '\n'.join(sections)


def untrained_tables() -> str:
    """Return a table per pair with published numbers; this project has trained none of them."""
    rows, sections = read('published'), []
    for pair in sorted({row['pair'] for row in rows}):
        table = [['Method', 'Teacher', 'Student alone', 'Paper', 'Ours', 'Source']]
        table.append([':--', *['--:'] * 4, ':--'])
        for row in rows:
            if row['pair'] == pair:
                numbers = (row['teacher'], row['student_alone'], row['accuracy'])
                table.append([f'`{row["method"]}`', *numbers, '', row['source']])
        sections.append(f'`configs/pairs/{pair}.py`\n\n{markdown(table)}')
    return '\n'.join(sections)


def difference(rows: Rows, pair: str, method: str, reference: str = 'scratch') -> str:
    """Return the mean per-seed difference of two methods with its 95 % interval."""
    if method == reference:
        return ''
    results = by_seed(rows, pair)
    return str(paired_difference(results[method], results[reference]))


def by_seed(rows: Rows, pair: str) -> dict[str, dict[str, float]]:
    """Return method -> seed -> accuracy after the last epoch of a pair."""
    results: dict[str, dict[str, float]] = {}
    for row in rows:
        if row['pair'] == pair:
            results.setdefault(row['method'], {})[row['seed']] = float(row['last'])
    return results


def changes_table() -> str:
    """Return the results of each change of MLDR-KD on the token student."""
    rows = read('results') + read('tries')
    table = [['Change', 'Last epoch', 'Compared with MLDR-KD'], [':--', '--:', '--:']]
    for change, method in CHANGES.items():
        gain = difference(rows, TOKEN_STUDENT, method, 'mldr')
        table.append([change, accuracy(rows, TOKEN_STUDENT, method), gain])
    return markdown(table)


def learning_rate_table() -> str:
    """Return the results of twice the learning rate on the token student."""
    rows = read('tries_learning_rate')
    now, before = (by_seed(of, TOKEN_STUDENT) for of in (rows, read('results')))
    table = [['Method', 'Last epoch', 'Compared with 1e-3'], [':--', '--:', '--:']]
    for name, method in {'student alone': 'scratch', 'OFA': 'ofa', 'MLDR-KD': 'mldr'}.items():
        gain = paired_difference(now[method], before[method])
        table.append([name, accuracy(rows, TOKEN_STUDENT, method), str(gain)])
    return markdown(table)


def mean(rows: Rows, method: str, pair: str = TOKEN_STUDENT) -> float:
    """Return the mean accuracy of a method on a pair, by default that of the token student."""
    return statistics.mean(
        float(row['last']) for row in rows if row['pair'] == pair and row['method'] == method
    )


def results_table(method: str) -> str:
    """Return the table of the results measured in this project, tuned if there are any."""
    names = VARIANTS.get(method, (method,))
    tuned = [row for pair in TUNED_PAIRS for row in read_tuned(pair)]
    return (
        measured_table(tuned, names, 'tuned with eight trials (docs/tuned_comparison.md)')
        or measured_table(read('results'), names, 'not tuned (docs/benchmarks.md)')
        or 'This project has not measured this method yet.\n'
    )


def measured_table(rows: Rows, names: Sequence[str], how: str) -> str:
    """Return a table of the methods with these names; empty if none is in the rows."""
    if not (found := [name for name in names if any(row['method'] == name for row in rows)]):
        return ''
    pairs = list(dict.fromkeys(row['pair'] for row in rows))
    table = [['', *(f'`{pair}`' for pair in pairs)], [':--', *('--:' for _ in pairs)]]
    table.append(['teacher', *(accuracy(rows, pair, name='teacher') for pair in pairs)])
    table.append(['student alone', *(accuracy(rows, pair, 'scratch') for pair in pairs)])
    table += [[f'`{name}`', *(accuracy(rows, pair, name) for pair in pairs)] for name in found]
    seeds = len({row['seed'] for row in rows})
    return (
        'Measured: top-1 accuracy after the last epoch in %, mean ± standard deviation of '
        f'{seeds} seeds, on\n20 classes of CIFAR-100 at 32 px, {how}.\n\n{markdown(table)}'
    )


def published_table(method: str) -> str:
    """Return the table of the published results."""
    rows = [row for row in read('published') if row['method'] == method]
    if not rows:
        return 'No published results are known for the pairs of this project.\n'
    table = [['Pair', 'Teacher', 'Student alone', f'`{method}`', 'Source']]
    table.append([':--', '--:', '--:', '--:', ':--'])
    for row in rows:
        name = f'`{row["pair"]}`'
        table.append([name, row['teacher'], row['student_alone'], row['accuracy'], row['source']])
    return (
        'Published: top-1 accuracy on CIFAR-100 at 224 px in %; not reproduced by this project.\n\n'
        f'{markdown(table)}'
    )


def accuracy(rows: Rows, pair: str, method: str | None = None, name: str = 'last') -> str:
    """Return the mean and standard deviation over the seeds; for the teacher, its value."""
    selected = [row for row in rows if row['pair'] == pair and method in (None, row['method'])]
    values = [float(row[name]) for row in selected if row[name]]
    if not values:
        return ''
    center = f'{statistics.mean(values):.2f}'
    return center if name == 'teacher' else f'{center} ± {statistics.stdev(values):.2f}'


def markdown(table: list[list[str]]) -> str:
    """Return a table as Markdown."""
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in table)


def read_tuned(pair: str) -> Rows:
    """Return the final runs of a pair of the tuned comparison; empty if it was not tuned."""
    path = TUNED / f'{pair}.csv'
    return read_csv(path) if path.is_file() else []


def read(name: str) -> Rows:
    """Return the rows of a results file of the benchmarks."""
    return read_csv(Path(__file__).with_name(f'{name}.csv'))


def read_csv(path: Path) -> Rows:
    """Return the rows of a file.

    Raises:
        ValueError: The methods of a pair have different seeds, or only one.
    """
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    if rows and 'seed' in rows[0]:
        for pair in {row['pair'] for row in rows}:
            seeds = {tuple(sorted(of_method)) for of_method in by_seed(rows, pair).values()}
            if len(seeds) > 1 or len(next(iter(seeds))) < 2:
                raise ValueError(
                    f'{path}: the methods of {pair} must have the same seeds, 2 or more'
                )
    return rows


if __name__ == '__main__':
    main()
