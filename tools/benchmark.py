"""Compare methods: a grid of pairs x methods x seeds, each pair under one recipe.

    python tools/benchmark.py --pairs PAIR ... --methods scratch kd mldr ... --seeds 3

A pair is a config in configs/pairs, a method a file in configs/_base_/methods; ``scratch`` is the
student alone. Both are given by path, or by name if they are in these directories or those of the
same name under the current directory. A teacher without a checkpoint is trained first, with the
config in configs/teachers that has the name of the checkpoint's directory.

Each run calls tools/train.py with the work directory WORK_DIR/PAIR/METHOD/seedN. One run per GPU is
active at a time or, without a GPU, one per core. Repeating the command continues a stopped
benchmark: finished runs are kept, interrupted ones resume from their last checkpoint. The benchmark
refuses to start if a stored run was trained with a different config, or if the runs of a pair
differ in more than the method and the seed.

At the end WORK_DIR holds results.md, results.csv and results.png of all finished runs.
"""

from __future__ import annotations

import copy
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from rich.console import Console

from mldr_kd_mm.apis import configs, results, trial
from mldr_kd_mm.apis.configs import METHODS, PAIRS, SCRATCH, TEACHERS
from mldr_kd_mm.apis.results import MeasuredTrial, check_recipes, stored_entries
from mldr_kd_mm.apis.trial import Settings
from mldr_kd_mm.engine.arguments import CfgOptions, merge_options, positive
from mldr_kd_mm.engine.processes import exit_when_stopped
from mldr_kd_mm.utils.errors import ConfigError, one_line_for


class Plan:
    """The runs that the command line describes.

    Attributes:
        students: The runs of the students.
        teachers: For each missing teacher checkpoint the run that trains it, in order.
        pairs: Pair -> settings without a method.
        methods: Method -> its file; scratch has none.
        work_dir: The directory of the students' runs.

    Raises:
        ConfigError: If an argument or a file is wrong.
    """

    def __init__(self, args: Namespace) -> None:
        self.students: list[MeasuredTrial] = []
        self.teachers: dict[Path, MeasuredTrial] = {}
        self.pairs: dict[str, Settings] = {}
        self.work_dir = args.work_dir
        self.methods = configs.find_all('method', METHODS, args.methods)
        self._args = args
        for pair, path in configs.find_all('pair', PAIRS, args.pairs).items():
            cfg = configs.read_config(path, 'pair')
            configs.check_pair(cfg, 'pair')
            self.pairs[pair] = self._complete(cfg)
            for method, argument in zip(self.methods, args.methods, strict=True):
                # Options describe the pair, so the student is taken after them.
                settings = trial.without_teacher(self.pairs[pair])
                if method != SCRATCH:
                    settings = self._complete(configs.compose(cfg, argument))
                for seed in range(args.seeds):
                    labels = dict(pair=pair, method=method, seed=seed)
                    work_dir = results.folder(self.work_dir, **labels)
                    run = self._run(work_dir, trial.with_seed(settings, seed), labels)
                    self.students.append(run)

    def _complete(self, cfg: configs.Config) -> Settings:
        cfg = copy.deepcopy(cfg)
        merge_options(cfg, self._args.cfg_options)
        return trial.with_resumable_checkpoints(trial.settings_of(cfg))

    def _run(self, work_dir: Path, settings: Settings, labels: dict[str, Any]) -> MeasuredTrial:
        """Return a run, after planning the teacher that it needs."""
        is_teacher = labels['method'] == 'teacher'
        name = ('teacher {pair}' if is_teacher else '{method} {pair} seed{seed}').format(**labels)
        run = MeasuredTrial.plan(name, work_dir, settings, labels | {'command': self._args.command})
        if is_teacher:
            run.elsewhere = 'set another model.teacher_checkpoint with --cfg-options'
        checkpoint = trial.teacher_file(settings)
        if checkpoint and not run.result_file.is_file():
            run.needs = self._teacher(checkpoint)
        return run

    def _teacher(self, checkpoint: Path) -> MeasuredTrial | None:
        """Return the run that trains a teacher, or None if its checkpoint exists."""
        work_dir, name = checkpoint.parent, checkpoint.parent.name
        config = results.config_file(work_dir)
        stopped = config.is_file() and not config.with_name('result.json').is_file()
        if checkpoint.is_file() and not stopped:
            return None
        if checkpoint not in self.teachers:
            missing = f"model.teacher_checkpoint='{checkpoint}': there is no such file"
            config = configs.config_of_teacher(checkpoint)
            if config is None:
                raise ConfigError(
                    f'{missing}, and no configs/{TEACHERS}/{name}.py to train it with'
                )
            cfg = configs.read_config(config)
            # A teacher has another model than the students.
            options = self._args.cfg_options.items()
            merge_options(cfg, {k: v for k, v in options if k.split('.')[0] != 'model'})
            settings = trial.settings_of(cfg)
            seed = settings.get('randomness', {}).get('seed', 0)
            run = self._run(work_dir, settings, dict(pair=name, method='teacher', seed=seed))
            if checkpoint.name != f'epoch_{run.epochs}.pth':
                raise ConfigError(f'{missing}; {config} would end with epoch_{run.epochs}.pth')
            self.teachers[checkpoint] = run
        return self.teachers[checkpoint]

    def runs(self) -> list[MeasuredTrial]:
        """Return all runs, a teacher before its students."""
        return [*self.teachers.values(), *self.students]

    def check(self) -> None:
        """Check that no run mixes with a stored one, and that each pair has one recipe.

        Raises:
            ConfigError: Two of them differ.
        """
        planned = [
            *((pair, f'the pair {pair}', of, '') for pair, of in self.pairs.items()),
            *(
                (run.labels['pair'], f'its method {method}', run.settings, f'remove it from {path}')
                for run in self.students
                for method, path in self.methods.items()
                if method == run.labels['method']
            ),
        ]
        check_recipes(planned)
        for run in self.runs():
            run.check_stored()
        own = {f'the stored run {run.work_dir}' for run in self.students}
        stored = stored_entries(self.work_dir, 'use another --work-dir, or remove that directory')
        others = [entry for entry in stored if entry[0] in self.pairs and entry[1] not in own]
        check_recipes([*planned[: len(self.pairs)], *others])
        results.check_seeds(self.work_dir, self.students)


def summary(plan: Plan) -> str:
    """Return one line about the planned runs."""
    finished = sum(run.result_file.is_file() for run in plan.students)
    teachers = ', '.join(run.work_dir.name for run in plan.teachers.values())
    line = f'{len(plan.students)} runs in {plan.work_dir}, {finished} of them finished'
    return f'{line}; teachers to train first: {teachers}' if teachers else line


def parse_args(argv: list[str] | None = None) -> Namespace:
    """Return the parsed command line."""
    parser = ArgumentParser(
        description=__doc__.replace('``', ''), formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--pairs', nargs='+', metavar='PAIR', help='names in configs/pairs, or paths')
    methods = 'scratch, names in configs/_base_/methods, or paths'
    add('--methods', nargs='+', metavar='METHOD', help=methods)
    seeds = 'use seeds 0 to N-1; default: 3'
    add('--seeds', type=positive, default=3, metavar='N', help=seeds)
    out = 'directory for runs and results; default: work_dirs/benchmark'
    add('--work-dir', type=Path, default=Path('work_dirs/benchmark'), help=out)
    jobs = 'concurrent runs; default: one per GPU, else one per core'
    add('--jobs', type=positive, help=jobs)
    options = dict(nargs='+', action=CfgOptions, default={}, metavar='KEY=VALUE')
    what = 'override config fields of every run; runs that train a teacher ignore model.* fields'
    add('--cfg-options', **options, help=what)
    only = 'run nothing; write the tables of WORK_DIR'
    add('--table-only', action='store_true', help=only)
    args = parser.parse_args(argv)
    if args.table_only and (args.pairs or args.methods or args.cfg_options):
        parser.error('--table-only runs nothing: leave out --pairs, --methods and --cfg-options')
    if not args.table_only and not (args.pairs and args.methods):
        parser.error('--pairs and --methods are needed, or --table-only')
    args.command = 'python tools/benchmark.py ' + shlex.join(sys.argv[1:] if argv is None else argv)
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and write its results.

    The exit code is 1 if a run failed, 2 for a user error, 130 if stopped.
    """
    args = parse_args(argv)
    with one_line_for(ConfigError, show_traceback=False):
        with exit_when_stopped('run the same command to continue'):
            failures = run_and_write(args)
    for failure in failures:
        print(f'error: {failure}', file=sys.stderr)
    sys.exit(1 if failures else 0)


def run_and_write(args: Namespace) -> list[str]:
    """Run what the command line asks for, and write the tables; return the failures."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    failures: list[str] = []
    if args.table_only:
        check_recipes(stored_entries(args.work_dir, 'remove one of them'))
        results.check_seeds(args.work_dir)
    else:
        plan = Plan(args)
        plan.check()
        with trial.claim_folder(args.work_dir, 'benchmark'):
            console.print(summary(plan))
            failures = results.run_all(plan.runs(), args.jobs, console)
    if not results.write_results(args.work_dir, console) and args.table_only:
        raise ConfigError(f'--work-dir {args.work_dir}: there is no finished run in it')
    return failures


if __name__ == '__main__':
    main()
