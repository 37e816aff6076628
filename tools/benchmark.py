"""Compare methods: pairs x methods x seeds, each pair under one recipe.

    python tools/benchmark.py --pairs PAIR ... --methods scratch kd mldr ... --seeds 3

A pair is a config in configs/pairs: teacher, student, data and schedule without a method. A method
is a file in configs/_base_/methods with ``method = dict(losses=[...], ...)``, the fields that it
adds to the model of a pair. ``scratch`` is the student alone. Pairs and methods are given by path,
or by name if they are in these directories or those of the same name under the current directory. A
teacher without a checkpoint is trained first, with the config in configs/teachers that has the name
of the checkpoint's directory.

Each run calls tools/train.py with the work directory WORK_DIR/PAIR/METHOD/seedN. One run per GPU is
active at a time or, without a GPU, one per core. Repeating the command continues a stopped
benchmark: finished runs are kept, interrupted ones resume from their last checkpoint. The benchmark
refuses to start if a stored run was trained with a different config, or if the runs of a pair
differ in more than the method and the seed.

At the end WORK_DIR holds results.md, results.csv and results.png of all finished runs.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shlex
import signal
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from pprint import pformat
from typing import Any, NamedTuple

import torch
from _results import Result, read_results, surroundings, write_atomically, write_results
from _runs import Ended, Run, RunFailed, check_code, positive, train_all
from mmengine.config import Config
from rich.console import Console

from mldr_kd_mm.apis import configs
from mldr_kd_mm.apis.configs import METHODS, PAIRS, SCRATCH, find_config, find_configs, read_config
from mldr_kd_mm.engine.arguments import RUNNER_FIELDS, CfgOptions, merge_options
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.utils.errors import ConfigError, describe, one_line_for
from mldr_kd_mm.utils.file_lock import lock_file
from mldr_kd_mm.utils.nested import iter_differences
from mldr_kd_mm.utils.safe_config import parse_config

TEACHERS = 'teachers'
# The config fields that determine what a run computes, not where it writes and how it starts.
SETTINGS = (RUNNER_FIELDS - {'work_dir', 'resume', 'launcher'}) | {'custom_imports'}
# The fields of a distilled model that belong to its pair; the others belong to the method.
OF_THE_PAIR = ('teacher', 'teacher_checkpoint', 'student', 'input_size', 'teacher_input_size')
# mmengine removes the oldest checkpoint before it writes the next: with a single one, a run that is
# stopped in between could not resume.
CHECKPOINTS = dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2, save_best=None)

Settings = dict[str, Any]


class Source(NamedTuple):
    """A pair or a method: its argument on the command line, its name, its file."""

    argument: str
    name: str
    path: Path | None  # scratch has none


@dataclass(eq=False)
class BenchmarkRun(Run):
    """A run that trains a student, or a teacher without a checkpoint.

    Attributes:
        labels: The fields of its :class:`Result` that follow from the command line.
        settings: Its resolved config. :meth:`all_settings` adds what depends on files.
    """

    labels: dict[str, Any]
    settings: Settings

    @property
    def result_file(self) -> Path:
        """The file that marks a finished run."""
        return self.config.with_name('result.json')

    def all_settings(self) -> Settings:
        """Return its settings with the checksum of the teacher checkpoint."""
        return with_checksum(self.settings)

    def has_trained(self) -> bool:
        """Return whether the run has started before."""
        return self.result_file.is_file() or bool(self.records())

    def prepare(self) -> None:
        """Write its config."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        settings = self.all_settings().items()
        lines = [f'{name} = {pformat(value, width=100)}\n' for name, value in settings]
        write_atomically(self.config, '\n'.join(lines))

    def arguments(self) -> list[str]:
        """Return the arguments that resume the run, or start it again if it cannot resume."""
        checkpoint = self.last_checkpoint()
        return ['--resume', str(checkpoint)] if checkpoint else ['--overwrite']

    def last_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, if there is one.

        An epoch is saved before its validation, so a run that resumes from there would skip an
        interrupted validation. The run must therefore have logged something after the checkpoint,
        which also shows that the file is complete. The last epoch is always repeated: a run without
        an epoch to train would not report its memory.
        """
        for epoch in range(min(self.epochs_done(), self.epochs - 1), 0, -1):
            checkpoint = self.work_dir / f'epoch_{epoch}.pth'
            if checkpoint.is_file():
                return checkpoint
        return None

    def seconds(self) -> float:
        """Return the total duration of all parts of the run."""
        # The Runner writes its config next to the log when it starts.
        logs = list(self.work_dir.glob('*/vis_data/scalars.json'))
        begins = [log.with_name('config.py').stat().st_mtime for log in logs]
        return sum(log.stat().st_mtime for log in logs) - sum(begins)

    def result(self, ended: Ended, made_with: dict[str, str]) -> Result:
        """Return the result of the finished run.

        Raises:
            RunFailed: If it ended with an error, or did not validate its last epoch.
        """
        check_code(self, ended)
        accuracies = self.curve(ACCURACY)
        if self.epochs not in accuracies:
            raise RunFailed(f'{self.name} logged no {ACCURACY} after epoch {self.epochs}')
        memory = [record['memory'] for record in self.records() if 'memory' in record]
        settings = self.all_settings()
        return Result(
            **self.labels,
            **made_with,
            last=accuracies[self.epochs],
            best=max(accuracies.values()),
            teacher=next(iter(self.curve(f'teacher/{ACCURACY}').values()), None),
            epochs=self.epochs,
            seconds=round(self.seconds(), 1),
            memory=max(memory, default=round(ended.memory)),
            teacher_checkpoint=settings['model'].get('teacher_checkpoint'),
            teacher_sha256=settings['teacher_sha256'],
            finished=datetime.now().isoformat(timespec='seconds'),
        )


class Plan:
    """The runs that the command line describes.

    Attributes:
        students: The runs of the students.
        teachers: For each missing teacher checkpoint the run that trains it, in order.
        pairs: Pair -> settings without a method.
        methods: The methods.
        work_dir: The directory of the students' runs.

    Raises:
        ConfigError: If an argument or a file is wrong.
    """

    def __init__(self, args: Namespace) -> None:
        self.students: list[BenchmarkRun] = []
        self.teachers: dict[Path, BenchmarkRun] = {}
        self.pairs: dict[str, Settings] = {}
        self.methods = find_all('method', METHODS, args.methods)
        self.work_dir = Path(args.work_dir)
        self._options = args.cfg_options
        for pair in find_all('pair', PAIRS, args.pairs):
            cfg = read_config(pair.path, 'pair')
            configs.check_pair(cfg, 'pair')
            self.pairs[pair.name] = complete(cfg, self._options)
            for method in self.methods:
                if method.name == SCRATCH:
                    # Options describe the pair, so the student is taken after them.
                    settings = without_teacher(self.pairs[pair.name])
                else:
                    composed = configs.compose(cfg, method.argument)
                    settings = complete(composed, self._options)
                for seed in range(args.seeds):
                    self.students.append(self._student(pair, method, seed, settings))

    def runs(self) -> list[BenchmarkRun]:
        """Return all runs, a teacher before its students."""
        return [*self.teachers.values(), *self.students]

    def _student(self, pair: Source, method: Source, seed: int, settings: Settings) -> BenchmarkRun:
        randomness = settings.get('randomness', {}) | {'seed': seed}
        labels = dict(pair=pair.name, method=method.name, seed=seed)
        return self._run(
            f'{method.name} {pair.name} seed{seed}',
            folder(self.work_dir, **labels),
            settings | {'randomness': randomness},
            labels | dict(pair_argument=pair.argument, method_argument=method.argument),
        )

    def _run(self, name: str, work_dir: Path, settings: Settings, labels: dict) -> BenchmarkRun:
        """Return a run, after planning the teacher that it needs."""
        epochs = settings.get('train_cfg', {}).get('max_epochs')
        if not isinstance(epochs, int):
            raise ConfigError(f'{name}: train_cfg.max_epochs={epochs!r}: must be a number')
        options = shlex.join(f'{key}={value}' for key, value in self._options.items())
        run = BenchmarkRun(
            name=name,
            # The Runner writes its own config into the work directory.
            config=work_dir / 'benchmark/config.py',
            work_dir=work_dir,
            epochs=epochs,
            needs=None,
            labels=labels | {'cfg_options': options},
            settings=settings,
        )
        checkpoint = teacher_file(settings)
        if checkpoint and not run.result_file.is_file():
            run.needs = self._teacher(checkpoint)
        return run

    def _teacher(self, checkpoint: Path) -> BenchmarkRun | None:
        """Return the run that trains a teacher, or None if its checkpoint exists."""
        work_dir, name = checkpoint.parent, checkpoint.parent.name
        record = work_dir / 'benchmark'
        stopped = (record / 'config.py').is_file() and not (record / 'result.json').is_file()
        if checkpoint.is_file() and not stopped:
            return None
        if checkpoint in self.teachers:
            return self.teachers[checkpoint]
        missing = f"model.teacher_checkpoint='{checkpoint}': there is no such file"
        config = find_configs(TEACHERS).get(name)
        if config is None:
            raise ConfigError(f'{missing}, and no configs/{TEACHERS}/{name}.py to train it with')
        # A teacher has another model than the students.
        options = {k: v for k, v in self._options.items() if k.split('.')[0] != 'model'}
        cfg = read_config(config)
        merge_options(cfg, options)
        settings = trained_part(cfg)
        seed = settings.get('randomness', {}).get('seed', 0)
        labels = dict(pair=name, method='teacher', seed=seed)
        labels |= dict(pair_argument=str(config), method_argument='')
        run = self._run(f'teacher {name}', work_dir, settings, labels)
        if checkpoint.name != f'epoch_{run.epochs}.pth':
            raise ConfigError(f'{missing}; {config} would end with epoch_{run.epochs}.pth')
        self.teachers[checkpoint] = run
        return run


def folder(work_dir: Path, pair: str, method: str, seed: int) -> Path:
    """Return the work directory of a student."""
    return work_dir / pair / method / f'seed{seed}'


def find_all(field: str, folder: str, arguments: Sequence[str]) -> list[Source]:
    """Return the pairs or methods that the command line names."""
    sources: list[Source] = []
    for argument in arguments:
        if argument == SCRATCH and folder == METHODS:
            source = Source(argument, SCRATCH, None)
        else:
            path = find_config(folder, argument, field)
            source = Source(argument, path.stem, path)
        if source.name in [other.name for other in sources]:
            raise ConfigError(f"{field}={argument!r}: '{source.name}' is given twice")
        sources.append(source)
    return sources


def complete(cfg: Config, options: dict[str, Any]) -> Settings:
    """Return the settings of a config with the options of the command line."""
    cfg = copy.deepcopy(cfg)
    merge_options(cfg, options)
    settings = trained_part(cfg)
    settings['default_hooks'] = settings.get('default_hooks', {}) | {'checkpoint': CHECKPOINTS}
    return settings


def trained_part(cfg: Config) -> Settings:
    """Return the fields that determine a run, in plain containers."""
    return {name: value for name, value in cfg.to_dict().items() if name in SETTINGS}


def is_distilled(settings: Settings) -> bool:
    """Return whether the model is a student with a teacher."""
    return 'student' in settings['model']


def without_teacher(settings: Settings) -> Settings:
    """Return the settings that train the student alone."""
    if not is_distilled(settings):
        return settings
    return settings | {'model': configs.student_alone(settings), 'teacher_sha256': None}


def read_settings(path: Path) -> Settings:
    """Return the settings that a run has stored, without executing the file.

    Raises:
        ConfigError: The file cannot be read, or contains more than literals.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path}: cannot be read ({describe(error)})') from error
    return parse_config(text, str(path))


def teacher_file(settings: Settings) -> Path | None:
    """Return the path of the teacher checkpoint, or None if there is no local file."""
    checkpoint = settings['model'].get('teacher_checkpoint')
    if not checkpoint or '://' in checkpoint or checkpoint.startswith(('hf-hub:', 'hf_hub:')):
        return None
    return Path(checkpoint).expanduser()


def with_checksum(settings: Settings) -> Settings:
    """Return the settings with the SHA-256 of the teacher checkpoint, None without a file."""
    path = teacher_file(settings)
    known = path is not None and path.is_file()
    return settings | {'teacher_sha256': _sha256(path, path.stat().st_mtime_ns) if known else None}


@lru_cache
def _sha256(path: Path, modified: int) -> str:
    """Return the SHA-256 of a file; the cache depends on its modification time."""
    digest = hashlib.sha256()
    with path.open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def recipe(settings: Settings) -> Settings:
    """Return the settings without those of the method and without the seed."""
    shared = {name: value for name, value in settings.items() if name != 'custom_imports'}
    shared['randomness'] = settings.get('randomness', {}) | {'seed': None}
    if is_distilled(settings):
        shared['model'] = {k: v for k, v in settings['model'].items() if k in OF_THE_PAIR}
    return shared


def check_recipe(pair: Settings, run: Settings, names: tuple[str, str], remedy: str) -> None:
    """Check that a run has the recipe of its pair.

    Args:
        pair: The settings of the pair, or of a run of it.
        run: The settings of the run. If either trains a student alone, teachers are not compared.
        names: The names of the two, for errors.
        remedy: What to do if they differ.

    Raises:
        ConfigError: They differ in more than the method and the seed.
    """
    if not (is_distilled(pair) and is_distilled(run)):
        pair, run = without_teacher(pair), without_teacher(run)
    if found := next(iter_differences(recipe(pair), recipe(run)), None):
        field, expected, value = found
        raise ConfigError(
            f'{field} is {show(expected)} in {names[0]}, and {show(value)} in {names[1]}, but the '
            f'methods of a pair share one recipe; {remedy}'
        )


def check_stored(run: BenchmarkRun) -> None:
    """Check that a stored run was trained with the settings of its planned run.

    Raises:
        ConfigError: They differ in a field, or the stored settings are unknown.
    """
    if not run.has_trained():
        return
    if not run.config.is_file():
        raise ConfigError(
            f'{run.work_dir} holds a run that the benchmark did not start; finish it '
            'with tools/train.py, or remove that directory'
        )
    if found := next(iter_differences(read_settings(run.config), run.all_settings()), None):
        field, old, new = found
        raise ConfigError(
            f'{field} was {show(old)} in the stored run {run.work_dir}, and would be {show(new)}; '
            'undo the change, use another --work-dir, or remove that directory'
        )


def show(value: Any) -> str:
    """Return a value as one short text."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def check_plan(plan: Plan, stored: Sequence[Result]) -> None:
    """Check that the planned and stored runs of a pair have one recipe.

    Raises:
        ConfigError: Two runs of a pair have different recipes.
    """
    for run in plan.students:
        method = next(m for m in plan.methods if m.name == run.labels['method'])
        pair = run.labels['pair']
        names = (f'the pair {pair}', f'its method {method.name}')
        check_recipe(plan.pairs[pair], run.settings, names, f'remove it from {method.path}')
    for run in plan.runs():
        check_stored(run)
    planned = [run.work_dir for run in plan.students]
    for result in stored:
        path = folder(plan.work_dir, result.pair, result.method, result.seed)
        if result.pair in plan.pairs and path not in planned:
            pair = with_checksum(plan.pairs[result.pair])
            names = (f'the pair {result.pair}', f'the stored run {path}')
            settings = read_settings(path / 'benchmark/config.py')
            check_recipe(pair, settings, names, 'use another --work-dir, or remove that directory')


def check_results(work_dir: Path) -> None:
    """Check that there are finished runs, and that those of a pair have one recipe.

    Raises:
        ConfigError: There is none, or two of them differ.
    """
    results = read_results(work_dir)
    if not results:
        raise ConfigError(f'--work-dir {work_dir}: there is no finished run in it')
    first: dict[str, tuple[Path, Settings]] = {}
    # Distilled runs come first, because only they describe the teacher.
    for result in sorted(results, key=lambda result: result.method == SCRATCH):
        path = folder(work_dir, result.pair, result.method, result.seed)
        settings = read_settings(path / 'benchmark/config.py')
        other_path, other = first.setdefault(result.pair, (path, settings))
        names = (f'the stored run {other_path}', f'the stored run {path}')
        check_recipe(other, settings, names, 'remove one of them')


def places(jobs: int | None) -> list[dict[str, str]]:
    """Return the environment variables of each concurrent run."""
    if torch.cuda.is_available():
        every = ','.join(map(str, range(torch.cuda.device_count())))
        visible = os.environ.get('CUDA_VISIBLE_DEVICES') or every
        devices = [{'CUDA_VISIBLE_DEVICES': device} for device in visible.split(',')]
    else:
        # More than one thread per run would only compete for the cores.
        devices = [{'OMP_NUM_THREADS': '1'}] * os.cpu_count()
    return [devices[number % len(devices)] for number in range(jobs or len(devices))]


@contextmanager
def alone_in(work_dir: Path) -> Iterator[None]:
    """Lock a work directory.

    Raises:
        ConfigError: If another benchmark is running in it, or it does not belong to a benchmark.
    """
    lock = work_dir / '.lock'
    other = next(work_dir.iterdir(), None) if work_dir.is_dir() else None
    if other is not None and not lock.is_file():
        raise ConfigError(
            f'--work-dir {work_dir}: does not belong to a benchmark and holds {other.name!r}; give '
            'an empty or a new directory'
        )
    work_dir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(lock, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f'--work-dir {work_dir}: another benchmark is running in it'
            ) from None
        yield


def run_all(plan: Plan, jobs: int | None, console: Console) -> list[str]:
    """Run everything unfinished; return one line for each failed run."""
    runs = [run for run in plan.runs() if not run.result_file.is_file()]
    console.print(summary(plan))
    made_with = surroundings()
    failures: dict[Run, str] = {}

    def on_end(run: BenchmarkRun, ended: Ended) -> None:
        try:
            result = run.result(ended, made_with)
        except RunFailed as error:
            failures[run] = str(error)
            console.print(f'{run.name}: failed')
            return
        write_atomically(run.result_file, json.dumps(asdict(result), indent=1))

    train_all(runs, places(jobs), console, on_end)
    for run in runs:
        if run not in failures and not run.result_file.is_file():
            failures[run] = f'{run.name} did not start, since {run.needs.name} failed'
    return list(failures.values())


def summary(plan: Plan) -> str:
    """Return one line about the planned runs."""
    finished = sum(run.result_file.is_file() for run in plan.students)
    line = f'{len(plan.students)} runs in {plan.work_dir}, {finished} of them finished'
    teachers = [run.work_dir.name for run in plan.teachers.values()]
    return f'{line}; teachers to train first: {", ".join(teachers)}' if teachers else line


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(
        description=__doc__.replace('``', ''), formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--pairs', nargs='+', metavar='PAIR', help='names in configs/pairs, or paths'
    )
    parser.add_argument(
        '--methods',
        nargs='+',
        metavar='METHOD',
        help='scratch, names in configs/_base_/methods, or paths',
    )
    parser.add_argument(
        '--seeds', type=positive, default=3, metavar='N', help='use seeds 0 to N-1; default: 3'
    )
    parser.add_argument(
        '--work-dir',
        default='work_dirs/benchmark',
        help='directory for runs and results; default: work_dirs/benchmark',
    )
    parser.add_argument(
        '--jobs', type=positive, help='concurrent runs; default: one per GPU, else one per core'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=CfgOptions,
        default={},
        metavar='KEY=VALUE',
        help='override config fields of every run; runs that train a teacher ignore model.* fields',
    )
    parser.add_argument(
        '--table-only', action='store_true', help='run nothing; write the tables of WORK_DIR'
    )
    args = parser.parse_args(argv)
    if not args.table_only and not (args.pairs and args.methods):
        parser.error('--pairs and --methods are needed, or --table-only')
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its results.

    The exit code is 1 if a run failed, 2 for a user error, 130 if stopped.
    """
    args = parse_args(argv)
    with one_line_for(ConfigError, show_traceback=False):
        try:
            failures = run_and_write(args)
        except KeyboardInterrupt:
            print('stopped; run the same command to continue', file=sys.stderr)
            sys.exit(130)
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    sys.exit(1 if failures else 0)


def run_and_write(args: Namespace) -> list[str]:
    """Run what the command line asks for, and write the tables; return the failures."""
    console = Console(highlight=False, soft_wrap=True)
    work_dir = Path(args.work_dir)
    failures: list[str] = []
    if args.table_only:
        check_results(work_dir)
    else:
        plan = Plan(args)
        check_plan(plan, read_results(work_dir))
        with alone_in(work_dir):
            failures = run_all(plan, args.jobs, console)
    results = read_results(work_dir)
    if results:
        write_results(results, work_dir)
        console.print((work_dir / 'results.md').read_text(), markup=False)
        console.print(f'written: {work_dir}/results.md, results.csv and results.png')
    return failures


if __name__ == '__main__':
    # SIGTERM ends a job on a cluster; like Ctrl-C it ends the runs too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
