"""Search for the learning rate and the few hyperparameters of each method, with Optuna.

Every method of a pair gets the same number of trials. A trial trains on the training set without a
held-out part, and its accuracy is measured on that part; the validation and test sets of the pair
are not used. The trials of a method are an Optuna study, so several processes and machines can
work on the same search.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from mmengine.config import Config
from mmengine.registry import init_default_scope
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from torch.utils.data import ConcatDataset

from mldr_kd_mm.apis import configs, trial
from mldr_kd_mm.apis import study as studies
from mldr_kd_mm.apis.configs import SCRATCH
from mldr_kd_mm.apis.results import (
    MeasuredTrial,
    check_recipes,
    check_seeds,
    config_file,
    folder,
    read_results,
    run_all,
    stored_entries,
    write_results,
)
from mldr_kd_mm.apis.run_record import validation_part
from mldr_kd_mm.apis.search_report import write_report
from mldr_kd_mm.apis.search_space import (
    get_field,
    make_space,
    own_values,
    set_fields,
    short,
    suggest,
)
from mldr_kd_mm.apis.study import (
    IMAGES,
    Plan,
    Task,
    find_studies,
    open_storage,
    quiet_optuna,
    retried,
    retry,
)
from mldr_kd_mm.apis.trial import Trial, write_text
from mldr_kd_mm.datasets.samples import hash_samples
from mldr_kd_mm.engine.arguments import leaves_one, merge_options
from mldr_kd_mm.engine.parts import part
from mldr_kd_mm.engine.processes import Ended, RunFailed, RunQueue, places, train_all
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_choice,
    check_count,
    check_file,
    check_positive,
    is_number,
)
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.utils.outputs import show_markdown, write_output

# Hooks whose measurements and figures a search does not use.
_NOT_OF_A_TRIAL = ('teacher_accuracy', 'figures')
_LOADERS = ('train_dataloader', 'val_dataloader')
_WITH_ACCURACY = (TrialState.COMPLETE, TrialState.PRUNED)
_OF_THE_TEST_SET = ('test_dataloader', 'test_evaluator', 'test_cfg')


def search(
    pair: str,
    methods: Sequence[str],
    trials: int = 20,
    sampler: str = 'tpe',
    pruner: str = 'hyperband',
    held_out: float = 0.1,
    seed: int = 0,
    seeds: int = 0,
    study: str | None = None,
    storage: str | None = None,
    work_dir: str | None = None,
    jobs: int | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    command: str = '',
) -> list[str]:
    """Search for the best hyperparameters of methods, with the same budget for each.

    Args:
        pair: Name in ``configs/pairs``, or path of a config.
        methods: Names in ``configs/_base_/methods``, paths, or ``'scratch'``, the student alone.
        trials: Number of trials of each method. The first has the values of its config.
        sampler: ``'tpe'`` or ``'random'``.
        pruner: Which trials end early by their accuracy so far: ``'hyperband'``, ``'halving'``
            (asynchronous successive halving) or ``'none'``.
        held_out: Fraction of each class of the training set to measure the accuracy on.
        seed: Seed of the held-out part, the sampler and the training runs.
        seeds: If above 0, train each method's best config with seeds 0 to ``seeds - 1`` on the
            whole training set at the end, and write a table of their accuracies.
        study: Name of the study; processes with the same name and storage work together. None: the
            pair's.
        storage: URL of a database. None: a file in the work directory.
        work_dir: Folder of the trials and results, which must be new, empty or of the same study.
            None: ``work_dirs/search/STUDY``.
        jobs: Number of concurrent runs, see :func:`~mldr_kd_mm.engine.processes.places`.
        cfg_options: Fields of every run to override.
        command: The command, for the record of the final runs.

    Returns:
        One line for each method and each final run that failed.

    Raises:
        ConfigError: If an argument is wrong, the study holds trials with other settings, or the
            folder is that of another study.
    """
    check_positive(trials=trials, **({} if jobs is None else dict(jobs=jobs)))
    check_count(seeds=seeds, seed=seed)
    check_choice(studies.SAMPLERS, sampler=sampler)
    check_choice(studies.PRUNERS, pruner=pruner)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    path = configs.find_config(configs.PAIRS, pair, 'pair')
    name = study or path.stem
    root = Path(work_dir or Path('work_dirs/search', name))
    configs.find_all('method', configs.METHODS, methods)
    plans = _make_plans(path, methods, held_out, seed, root, cfg_options or {})
    choices = dict(pair=path.stem, sampler=sampler, pruner=pruner)
    _claim(root, name)
    with quiet_optuna():
        opened, lock = open_storage(storage or f'sqlite:///{root}/study.db')
        with lock():
            tasks = [Task.open(plan, name, opened, lock, trials, seed, choices) for plan in plans]
        if seeds:
            _check_shared(root / 'final', find_studies(name, opened), path.stem, plans[0])
        each = f'with {plural(trials, "trial")} each'
        console.print(f'{plural(len(tasks), "method")} {each}, in {root}')
        queue = TrialQueue(tasks, root, console)
        try:
            train_all(queue, places(jobs), console)
        finally:
            queue.release()
        failures = [
            f'{task.plan.method}: no trial was completed, see {root}/trials/{task.plan.method}'
            for task in tasks
            if not task.completed()
        ]
        # Other processes of the study may end at the same time.
        with trial.claim_folder(root, 'search', wait=True):
            best = {
                task.plan.method: _write_best(task, root, name, console)
                for task in tasks
                if task.completed()
            }
            found = find_studies(name, opened)
            table = write_report(found, root, choices, held_out, console.print)
    show_markdown(table, console)
    console.print(f'written: {root}/search.md' + (f' and {root}/best' if best else ''))
    if seeds and best:
        # If several processes get here, one trains, and the others find its results.
        with trial.claim_folder(root / 'final', 'search', wait=True):
            runs = _plan_final(best, path.stem, seeds, root / 'final', command)
            check_seeds(root / 'final', runs)
            _check_final(root / 'final', found)
            failures += run_all(runs, jobs, console)
            write_results(root / 'final', console)
    return failures


def _claim(root: Path, study: str) -> None:
    """Create the folder of a study, or check that an existing one belongs to it."""
    with trial.claim_folder(root, 'search', wait=True):
        owner = root / '.study'
        if owner.is_file() and (other := owner.read_text()) != study:
            raise ConfigError(
                f'work_dir={str(root)!r}: belongs to the study {other!r}; give another --work-dir, '
                f'or --study {other} to continue that one'
            )
        write_text(owner, study)


def _make_plans(
    path: Path,
    methods: Sequence[str],
    held_out: float,
    seed: int,
    root: Path,
    options: Mapping[str, Any],
) -> list[Plan]:
    """Compose a pair with each method, and derive the configs of their trials."""
    pair = configs.read_config(path, 'pair')
    composed = [_compose(pair, method, options) for method in methods]
    of_trials = copy.deepcopy(composed)
    for config in of_trials:
        hold_out(config, held_out, seed)
    # Before drop_last is decided, which follows from the images: the error is to name the cause.
    shared = [trial.with_seed(trial.settings_of(config), seed) for config in of_trials]
    images = _read_images(of_trials, composed)
    plans = []
    for method, full, config, fixed in zip(methods, composed, of_trials, shared, strict=True):
        name = Path(method).stem
        space = make_space(configs.read_search_space(method, pair), full, name)
        ranges = {field: repr(limits) for field, limits in space.items()}
        # The images come last: if a field of their data set differs, the error names the field.
        settings = trial.with_checksum(fixed) | {'search_space': ranges, IMAGES: images}
        share_teacher_outputs(config, root / 'teacher_cache')
        plans.append(Plan(name, full, config, settings, space, own_values(full, space, name)))
    return plans


def _compose(pair: Config, method: str, options: Mapping[str, Any]) -> Config:
    """Compose a pair with a method, and check what a run of it needs."""
    if method == SCRATCH:
        # Options describe the pair, so the student is taken after them.
        pair = copy.deepcopy(pair)
        merge_options(pair, trial.without_options_of_method(options))
        full = configs.compose(pair, method)
    else:
        full = configs.compose(pair, method)
        merge_options(full, dict(options))
    settings = trial.settings_of(full)
    trial.epochs_of(settings, Path(method).stem)
    if checkpoint := trial.teacher_file(settings):
        of_teacher = configs.config_of_teacher(checkpoint)
        how = f': python tools/train.py {of_teacher}' if of_teacher else ''
        check_file('model.teacher_checkpoint', str(checkpoint), f'train the teacher first{how}')
    return full


def hold_out(cfg: Config, fraction: float, seed: int) -> None:
    """Let a config train without a part of its training set, and validate each epoch on that part.

    Args:
        cfg: The config; it is changed. Its test set is removed. For kNN accuracy, the labelled
            images are those of the remaining part.
        fraction: Fraction of each class to hold out.
        seed: Seed of the choice.

    Raises:
        ConfigError: The config has no training or validation loader.
    """
    for name in _LOADERS:
        if not (cfg.get(name) or {}).get('dataset'):
            raise ConfigError(f'{name}: must have a dataset, for a part of it to be held out')
    train = cfg.train_dataloader.dataset
    rest = dict(type='mldr_kd_mm.HeldOutPart', fraction=fraction, seed=seed)
    # The images of the one part, prepared as those of validation.
    validation = validation_part(cfg.to_dict())
    if 'pipeline' in train and 'pipeline' not in validation:
        raise ConfigError(
            'val_dataloader.dataset: must have a pipeline, which prepares the held-out images'
        )
    held_out = {**train.to_dict(), 'pipeline': validation.get('pipeline')}
    cfg.train_dataloader.dataset = dict(rest, dataset=train.to_dict())
    cfg.val_dataloader.dataset = dict(rest, dataset=held_out, held_out=True)
    if str(cfg.val_cfg.get('type')).endswith('KNNLoop'):
        bank = dict(rest, dataset=held_out)
        cfg.val_cfg.bank_dataloader = {**cfg.val_dataloader.to_dict(), 'dataset': bank}
    cfg.train_cfg.update(val_interval=1, val_begin=1)
    for name in _OF_THE_TEST_SET:
        cfg.pop(name, None)


def _read_images(of_trials: Sequence[Config], composed: Sequence[Config]) -> str | None:
    """Build both parts of the training set, and set what follows from their sizes.

    That is whether a last batch of one image is dropped, and the number of images in a loss that
    stores an entry for each.

    Args:
        of_trials: Configs on the same data; they are changed.
        composed: The same on the whole training set; they are changed.

    Returns:
        A hash of the images, see :func:`~mldr_kd_mm.datasets.samples.hash_samples`.

    Raises:
        ConfigError: The training set cannot be read or divided.
    """
    init_default_scope(of_trials[0].get('default_scope') or 'mmpretrain')
    parts = []
    for name in _LOADERS:
        dataset = copy.deepcopy(of_trials[0][name].dataset)
        with part(dataset, DATASETS, f'{name}.dataset'):
            parts.append(DATASETS.build(dataset))
    both = ConcatDataset(parts)
    for config, full in zip(of_trials, composed, strict=True):
        configs.set_num_samples(config.model, len(parts[0]))
        configs.set_num_samples(full.model, len(both))
        loader = config.train_dataloader
        batch_size = loader.get('batch_size')
        if not is_number(batch_size, int):
            continue
        alone = leaves_one(len(parts[0]), batch_size)
        decides = alone != leaves_one(len(both), batch_size)
        if decides and alone != loader.get('drop_last', False):
            loader.drop_last = alone
    return hash_samples(both)


def share_teacher_outputs(cfg: Config, cache: Path) -> None:
    """Let a config read the teacher's outputs from a cache that all trials of a seed share.

    An augmented sample is a function of seed, epoch and index, so its output is the same in each.
    """
    if not cfg.get('default_hooks'):
        cfg.default_hooks = {}
    hooks = cfg.default_hooks
    for name in _NOT_OF_A_TRIAL:
        hooks.pop(name, None)
    sampler = cfg.train_dataloader.get('sampler') or {}
    preprocessor = str(cfg.get('data_preprocessor'))
    # Only this preprocessor mixes reproducibly.
    mixes = 'augments' in f'{preprocessor}{cfg.model}' and 'ViewData' not in preprocessor
    if 'teacher' not in cfg.model or mixes or not str(sampler.get('type')).endswith('ViewSampler'):
        return
    sampler.setdefault('views', cfg.train_cfg.max_epochs)
    hook = hooks.get('teacher_cache') or dict(type='TeacherCacheHook')
    hooks.teacher_cache = {**hook, 'dir': hook.get('dir') or str(cache)}


@dataclass(eq=False)
class SearchRun(Trial):
    """The training run of an Optuna trial.

    Attributes:
        task: Its method.
        trial: The trial.
        reported: Epochs whose accuracy the study knows.
        beat: Time of the last heartbeat.
        pruned: Whether it ends early because others are better.
        lost: Whether the study has given it up, because it recorded no heartbeats.
    """

    task: Task
    trial: optuna.Trial
    reported: set[int] = field(default_factory=set)
    beat: float = 0.0
    pruned: bool = False
    lost: bool = False

    def report(self) -> None:
        """Record a heartbeat and the accuracy of new epochs; decide whether to end early."""
        if time.monotonic() - self.beat > studies.HEARTBEAT:
            self.task.storage.record_heartbeat(self.trial._trial_id)
            self.beat = time.monotonic()
        for epoch, accuracy in self.curve(ACCURACY).items():
            if epoch not in self.reported:
                self.trial.report(accuracy, epoch)
                self.reported.add(epoch)
                self.pruned = self.pruned or (epoch < self.epochs and self.trial.should_prune())

    def has_diverged(self) -> bool:
        """Return whether the NonFiniteHook skipped a step."""
        return any('skipped_steps' in record for record in self.records())

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints of the ended run; a search has many."""
        for path in self.work_dir.glob('*.pth'):
            path.unlink()


class TrialQueue(RunQueue):
    """The trials of a search: of the method with the fewest, the next that waits.

    Args:
        tasks: The methods.
        root: The work directory of the search.
        console: Shows a line for each trial.
    """

    def __init__(self, tasks: Sequence[Task], root: Path, console: Console) -> None:
        super().__init__((), lambda run, ended: None)
        self._tasks = tasks
        self._root = root
        self._console = console
        self._active: set[SearchRun] = set()
        self._looked = 0.0

    def pop(self) -> SearchRun | None:
        if time.monotonic() - self._looked < 1:  # the storage may be remote
            return None
        tasks = sorted(self._tasks, key=lambda task: -task.count(TrialState.WAITING))
        for task in tasks:
            if (taken := task.take()) is not None:
                try:
                    run = self._make_run(task, taken)
                except ConfigError:
                    self._give_back(task, taken)
                    raise
                self._active.add(run)
                return run
        self._looked = time.monotonic()
        return None

    def _make_run(self, task: Task, taken: optuna.Trial) -> SearchRun:
        config = copy.deepcopy(task.plan.config)
        method, values = task.plan.method, suggest(taken, task.plan.space)
        set_fields(config, values, method)
        settings = trial.with_seed(trial.settings_of(config), task.seed)
        settings = trial.with_resumable_checkpoints(settings)
        identity = trial.identity(trial.with_checksum(settings))
        taken.set_user_attr('settings', identity)
        # A trial that is retried continues in the directory of the original.
        original = retried(task.study.get_trials(deepcopy=False)[taken.number])
        number = taken.number if original is None else original
        work_dir = self._root / 'trials' / method / f'{number:03d}-{identity}'
        name, config_file = f'{method} trial {taken.number}', work_dir / 'trial/config.py'
        epochs = trial.epochs_of(settings, name)
        return SearchRun(name, config_file, work_dir, epochs, None, settings, task, taken)

    def may_grow(self) -> bool:
        # Another process may be killed, and leave its trial to this one.
        return any(task.count(TrialState.RUNNING, TrialState.WAITING) for task in self._tasks)

    def should_stop(self, run: SearchRun) -> bool:
        try:
            if not (run.pruned or run.lost):
                run.report()
        except UpdateFinishedTrialError:
            run.lost = True
        return run.pruned or run.lost

    def end(self, run: SearchRun, ended: Ended) -> None:
        self.should_stop(run)
        self._active.discard(run)
        try:
            if run.lost:
                raise RunFailed(f'{run.name}: another process has taken it over')
            if run.pruned and ended.code != 0:
                self._tell(run, TrialState.PRUNED)
                reached = f'{run.latest_accuracy()} after epoch {run.epochs_done()}'
                self._console.print(f'{run.name}: {reached}, pruned')
            else:
                accuracies = run.accuracies(ended)
                self._tell(run, TrialState.COMPLETE, accuracies[run.epochs])
            run.remove_checkpoints()
        except RunFailed as error:
            self._console.print(f'error: {error}')
            self._fail(run, ended, str(error))

    def _fail(self, run: SearchRun, ended: Ended, message: str) -> None:
        if run.lost:
            return
        failed = self._tell(run, TrialState.FAIL)
        if ended.code < 0 or ended.code > 128:  # by a signal
            retry(run.task.study, failed)
        elif ended.code == 2 and not run.reported and not run.has_diverged():
            raise ConfigError(message)  # the next trial would have the same fault

    def _tell(self, run: SearchRun, state: TrialState, value: float | None = None) -> FrozenTrial:
        return run.task.study.tell(run.trial.number, value, state, skip_if_finished=True)

    def release(self) -> None:
        """Let the trials of runs that were interrupted wait for the next process."""
        for run in self._active:
            self._give_back(run.task, run.trial)

    def _give_back(self, task: Task, taken: optuna.Trial) -> None:
        if task.storage.get_trial(taken._trial_id).state == TrialState.RUNNING:
            task.storage.set_trial_state_values(taken._trial_id, TrialState.WAITING)


def _write_best(task: Task, root: Path, study: str, console: Console) -> Config:
    """Write the best config of a method, as it is trained on the whole training set."""
    best = task.study.best_trial
    config = copy.deepcopy(task.plan.full)
    set_fields(config, best.params, task.plan.method)
    config.work_dir = f'work_dirs/{study.replace("/", "_")}_{task.plan.method}'
    values = ''.join(f'    {name} = {short(value)}\n' for name, value in best.params.items())
    ended = plural(task.count(*_WITH_ACCURACY), 'trial')
    write_output(
        root / 'best' / f'{task.plan.method}.py',
        f'"""The best of {ended}: number {best.number}, {best.value:.2f} % '
        f'on the held-out part.\n\n{values}"""\n\n{config.pretty_text}',
        console.print,
    )
    return config


def _plan_final(
    best: Mapping[str, Config], pair: str, seeds: int, root: Path, command: str
) -> list[MeasuredTrial]:
    """Return the runs of the best configs with several seeds, on the whole training set."""
    runs = []
    for method, config in best.items():
        settings = trial.with_resumable_checkpoints(trial.settings_of(config))
        for seed in range(seeds):
            labels = dict(pair=pair, method=method, seed=seed)
            place, name = folder(root, **labels), f'{method} {pair} seed{seed}'
            labels |= dict(command=command)
            run = MeasuredTrial.plan(name, place, trial.with_seed(settings, seed), labels)
            run.check_stored()
            runs.append(run)
    return runs


def _check_shared(root: Path, found: Mapping[str, optuna.Study], pair: str, plan: Plan) -> None:
    """Check that the finished final runs are comparable with the next ones.

    The trials of a study share one recipe, but not the validation set of the final runs.

    Raises:
        ConfigError: A run differs in more than the method and the tuned fields, or it is of a
            method that the study does not have.
    """
    for result in read_results(root):
        if result.method not in found:
            raise ConfigError(
                f'{folder(root, result.pair, result.method, result.seed)}: is a run of a method '
                f'that the study does not have; remove {root}, or use another --work-dir'
            )
    trials = (frozen for study in found.values() for frozen in study.get_trials(deepcopy=False))
    tuned = {*plan.space, *(name for frozen in trials for name in frozen.distributions)}
    planned = trial.with_resumable_checkpoints(trial.settings_of(plan.full))
    remedy = 'undo the change, or use another --study and --work-dir'
    # The rates of the schedule follow the tuned learning rate.
    check_recipes(
        [(pair, 'the next runs', planned, ''), *stored_entries(root, remedy)],
        {*tuned, 'param_scheduler'},
    )


def _check_final(root: Path, found: Mapping[str, optuna.Study]) -> None:
    """Check that the finished final runs have the best values of their methods.

    Raises:
        ConfigError: The study of a method has found better values since then.
    """
    for result in read_results(root):
        place = folder(root, result.pair, result.method, result.seed)
        settings = trial.read_settings(config_file(place))
        for name, best in found[result.method].best_params.items():
            stored = get_field(settings, name, result.method)
            if stored != best:
                raise ConfigError(
                    f'{name} is {short(stored)} in the stored run {place}, but the best is now '
                    f'{short(best)}; remove {place.parent}, and repeat the command with '
                    f'--methods {result.method}'
                )
