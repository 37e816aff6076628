"""The Optuna studies of a search, which several processes and machines share."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from mmengine.config import Config
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner, SuccessiveHalvingPruner
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from mldr_kd_mm.apis import trial
from mldr_kd_mm.apis.environment import describe_environment
from mldr_kd_mm.apis.search_space import Space
from mldr_kd_mm.apis.trial import Settings
from mldr_kd_mm.utils.errors import ConfigError, describe
from mldr_kd_mm.utils.file_lock import lock_file
from mldr_kd_mm.utils.nested import iter_differences

SAMPLERS = ('tpe', 'random')
PRUNERS = ('hyperband', 'halving', 'none')
# A process without a heartbeat for the grace period counts as killed. In seconds.
HEARTBEAT, GRACE = 5, 60
Lock = Callable[[], AbstractContextManager]
_SEEDS = 2**32  # of NumPy
_REDUCTION = 3  # of the trials that each rung of a pruner keeps
# The setting that is a hash of the training images, those of the held-out part included.
IMAGES = 'images'


@dataclass(frozen=True)
class Plan:
    """A method of the search.

    Attributes:
        method: Its name.
        full: Config of the pair with the method, as ``tools/train.py`` would train it.
        config: The same for a trial, which measures its accuracy on the held-out part.
        settings: Settings that all trials of a study share.
        space: The fields to vary.
        start: The values of the first trial, those of the config.
    """

    method: str
    full: Config
    config: Config
    settings: Settings
    space: Space
    start: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A method and its Optuna study.

    The budget is in the storage, as that many waiting trials. The process that changes a trial from
    waiting to running trains it, so each is trained once.

    Attributes:
        plan: The method.
        study: Its study.
        storage: The storage of the study.
        lock: Held while a trial is taken, unless the database itself can lock a row.
        trials: Number of trials.
        seed: Seed of the sampler.
        sampler: Its name.
    """

    plan: Plan
    study: optuna.Study
    storage: RDBStorage
    lock: Lock
    trials: int
    seed: int
    sampler: str

    @classmethod
    def open(
        cls,
        plan: Plan,
        search: str,
        storage: RDBStorage,
        lock: Lock,
        trials: int,
        seed: int,
        choices: Mapping[str, str],
    ) -> Task:
        """Create a study with waiting trials, or join one with the same settings.

        Processes that do so at once, without the lock, may add too many trials. The surplus waits
        for ever.

        Args:
            plan: The method.
            search: Name of the search.
            storage: The storage.
            lock: See :class:`Task`; it is held.
            trials: Number of trials.
            seed: Seed of the sampler.
            choices: Names of pair, sampler and pruner.

        Raises:
            ConfigError: The study has other settings, or those of another method of the search are
                not comparable.
        """
        settings = json.loads(json.dumps({**choices, **plan.settings}, default=str))
        name = f'{search}/{plan.method}'
        for method, other in find_studies(search, storage).items():
            if method != plan.method:
                stored = other.user_attrs.get('settings', settings)
                _check_same(f'{search}/{method}', *trial.shared_settings(stored, settings))
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction='maximize',
            pruner=_make_pruner(choices['pruner'], plan.config.train_cfg.max_epochs),
            load_if_exists=True,
        )
        if 'settings' in study.user_attrs:
            _check_same(name, study.user_attrs['settings'], settings)
        else:
            study.set_user_attr('settings', settings)
            study.set_user_attr('made_with', describe_environment())
        task = cls(plan, study, storage, lock, trials, seed, choices['sampler'])
        for number in range(len(task._originals()), trials):
            study.enqueue_trial(plan.start if number == 0 else {})
        return task

    def _originals(self) -> list[FrozenTrial]:
        trials = self.study.get_trials(deepcopy=False)
        return [frozen for frozen in trials if retried(frozen) is None]

    def _budget(self) -> list[FrozenTrial]:
        """Return the trials to run: the first originals, even if there are more, and retries."""
        trials = self.study.get_trials(deepcopy=False)
        retries = [frozen for frozen in trials if retried(frozen) is not None]
        return self._originals()[: self.trials] + retries

    def count(self, *states: TrialState) -> int:
        """Return the number of trials in these states."""
        return sum(frozen.state in states for frozen in self._budget())

    def completed(self) -> list[FrozenTrial]:
        """Return the completed trials."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))

    def take(self) -> optuna.Trial | None:
        """Take a waiting trial, or one whose process was killed; None if there is none."""
        with self.lock():
            fail_stale_trials(self.study)
            for frozen in self._budget():
                if frozen.state != TrialState.WAITING:
                    continue
                try:
                    taken = self.storage.set_trial_state_values(
                        frozen._trial_id, TrialState.RUNNING
                    )
                except UpdateFinishedTrialError:
                    taken = False
                if taken:
                    self.storage.record_heartbeat(frozen._trial_id)
                    # By its number, so that processes of the same seed do not repeat each other.
                    number = (self.seed * 10_000 + frozen.number) % _SEEDS
                    self.study.sampler = _make_sampler(self.sampler, number)
                    return optuna.Trial(self.study, frozen._trial_id)
        return None


def find_studies(search: str, storage: RDBStorage) -> dict[str, optuna.Study]:
    """Return the studies of a search: method -> study.

    Args:
        search: Name of the search.
        storage: The storage.
    """
    names = (name.rpartition('/') for name in optuna.get_all_study_names(storage))
    return {
        method: optuna.load_study(study_name=f'{search}/{method}', storage=storage)
        for owner, _, method in names
        if owner == search
    }


def _check_same(name: str, stored: Settings, settings: Settings) -> None:
    """Raise a ConfigError if settings differ from those of a study."""
    for key, old, new in iter_differences(stored, settings):
        if key != IMAGES:
            raise ConfigError(
                f'study={name!r}: {key} was {trial.show(old)} when it began, and would be '
                f'{trial.show(new)}; undo the change, or start another --study'
            )
        if isinstance(old, str):  # studies of earlier versions have no hash
            raise ConfigError(
                f'study={name!r}: the training images are not those with which it began; restore '
                'them, or start another --study'
            )


def retry(study: optuna.Study, failed: FrozenTrial) -> None:
    """Let a trial whose process was killed wait once more."""
    RetryHeartbeatStaleTrialCallback(max_retry=1)(study, failed)


def retried(frozen: FrozenTrial) -> int | None:
    """Return the number of the trial that a trial repeats; None if it is an original."""
    return RetryHeartbeatStaleTrialCallback.retried_trial_number(frozen)


def open_storage(url: str) -> tuple[RDBStorage, Lock]:
    """Open a database.

    Returns:
        The storage, and a function that returns a lock to hold while a trial is taken.

    Raises:
        ConfigError: It cannot be reached.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
        shown = parsed.render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError(
            f'storage={url!r}: must be the URL of a database, such as sqlite:///study.db or '
            'postgresql://USER@HOST/NAME'
        ) from None
    lock: Lock = nullcontext
    options = None
    if parsed.get_backend_name() == 'sqlite' and parsed.database:
        # SQLite has no locks of rows: two processes could take the same trial.
        lock, options = partial(lock_file, Path(f'{parsed.database}.lock')), dict(timeout=60)
    try:
        with lock():
            opened = RDBStorage(
                url,
                engine_kwargs=dict(connect_args=options) if options else None,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=retry,
            )
    except Exception as error:
        raise ConfigError(f'storage={shown!r}: cannot be reached ({describe(error)})') from error
    return opened, lock


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Show only Optuna's warnings, and not those about experimental functions."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(level)


def _make_sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == 'random':
        return optuna.samplers.RandomSampler(seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)


def _make_pruner(name: str, epochs: int) -> BasePruner:
    least = max(1, epochs // _REDUCTION**2)
    if name == 'halving':
        return SuccessiveHalvingPruner(min_resource=least, reduction_factor=_REDUCTION)
    if name == 'hyperband':
        return HyperbandPruner(least, max_resource=epochs, reduction_factor=_REDUCTION)
    return NopPruner()
