"""A trial: a training run of a pair with a method, a seed and the values of some fields.

The benchmark and the search run trials with ``tools/train.py``. A trial is identified by its
settings, the fields of its config that determine what it computes, so that runs of different
recipes cannot mix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pprint import pformat
from typing import Any

from mmengine.config import Config

from mldr_kd_mm.apis.configs import student_alone
from mldr_kd_mm.engine.arguments import RUNNER_FIELDS
from mldr_kd_mm.engine.processes import Ended, Run, RunFailed, check_code
from mldr_kd_mm.evaluation.logged_run import ACCURACY
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.errors import REMOTE, ConfigError, describe, is_number
from mldr_kd_mm.utils.file_lock import lock_file
from mldr_kd_mm.utils.nested import iter_differences
from mldr_kd_mm.utils.run_identity import hash_file
from mldr_kd_mm.utils.safe_config import parse_config

# The config fields that determine what a run computes, not where it writes and how it starts.
_FIELDS = (RUNNER_FIELDS - {'work_dir', 'resume', 'launcher'}) | {'custom_imports'}
# mmengine removes the oldest checkpoint before it writes the next: with a single one, a run that is
# stopped in between could not resume.
_CHECKPOINTS = dict(type='AtomicCheckpointHook', interval=1, max_keep_ckpts=2, save_best=None)

# The fields of a distilled model that belong to its pair; the others belong to the method.
_OF_THE_PAIR = ('teacher', 'teacher_checkpoint', 'student', 'input_size', 'teacher_input_size')
# Other settings of the method.
_OF_THE_METHOD = ('custom_imports', 'search_space')

Settings = dict[str, Any]


@dataclass(eq=False)
class Trial(Run):
    """A run with known settings, which continues after an interruption.

    Attributes:
        settings: Its resolved config, see :func:`settings_of`. :meth:`all_settings` adds what
            depends on files.
        elsewhere: How to choose another work directory, for errors.
    """

    settings: Settings
    elsewhere: str = field(default='use another --work-dir', kw_only=True)

    def all_settings(self) -> Settings:
        """Return its settings with the checksum of the teacher checkpoint."""
        return with_checksum(self.settings)

    def prepare(self) -> None:
        """Write its config."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        settings = self.all_settings().items()
        lines = [f'{name} = {pformat(value, width=100)}\n' for name, value in settings]
        write_text(self.config, '\n'.join(lines))

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

    def accuracies(self, ended: Ended) -> dict[int, float]:
        """Return the validation accuracy of each epoch of the finished run, in %.

        Raises:
            RunFailed: If it ended with an error, or did not validate its last epoch.
        """
        check_code(self, ended)
        accuracies = self.curve(ACCURACY)
        if self.epochs not in accuracies:
            raise RunFailed(f'{self.name} logged no {ACCURACY} after epoch {self.epochs}')
        return accuracies

    def check_stored(self) -> None:
        """Check that an earlier part of the run had the same settings.

        Raises:
            ConfigError: They differ in a field, or the stored settings are unknown.
        """
        if not self.config.is_file():
            raise ConfigError(
                f'{self.work_dir}: holds a run that this command did not start; finish it with '
                f'tools/train.py, {self.elsewhere}, or remove that directory'
            )
        if found := next(iter_differences(read_settings(self.config), self.all_settings()), None):
            name, old, new = found
            raise ConfigError(
                f'{name} was {show(old)} in the stored run {self.work_dir}, and would be '
                f'{show(new)}; undo the change, {self.elsewhere}, or remove that directory'
            )


def settings_of(cfg: Config) -> Settings:
    """Return the fields that determine a run, in plain containers."""
    return {name: value for name, value in cfg.to_dict().items() if name in _FIELDS}


def with_resumable_checkpoints(settings: Settings) -> Settings:
    """Return settings that save each epoch, so that the run can continue from any."""
    hooks = settings.get('default_hooks') or {}
    return settings | {'default_hooks': hooks | {'checkpoint': _CHECKPOINTS}}


def with_seed(settings: Settings, seed: int) -> Settings:
    """Return settings with another random seed."""
    return settings | {'randomness': (settings.get('randomness') or {}) | {'seed': seed}}


def epochs_of(settings: Settings, name: str) -> int:
    """Return the number of epochs.

    Raises:
        ConfigError: The run does not count epochs.
    """
    epochs = (settings.get('train_cfg') or {}).get('max_epochs')
    if not is_number(epochs, int):
        raise ConfigError(f'{name}: train_cfg.max_epochs={epochs!r}: must be a number')
    return epochs


def identity(settings: Settings) -> str:
    """Return a hash of settings: equal for equal settings, in whatever order their fields are."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_distilled(settings: Settings) -> bool:
    """Return whether the model is a student with a teacher."""
    return 'student' in settings['model']


def without_teacher(settings: Settings) -> Settings:
    """Return the settings that train the student alone."""
    if not is_distilled(settings):
        return settings
    return settings | {'model': student_alone(settings), 'teacher_sha256': None}


def shared_settings(first: Settings, second: Settings) -> tuple[Settings, Settings]:
    """Return of two runs the settings that comparable methods of a pair share.

    These are all but those of the method and the seed. If either run trains a student alone, both
    are without the teacher.
    """
    both = tuple(map(with_checksum, (first, second)))
    if not all(map(is_distilled, both)):
        both = tuple(map(without_teacher, both))
    return tuple(map(_without_method, both))


def _without_method(settings: Settings) -> Settings:
    shared = {k: v for k, v in with_seed(settings, 0).items() if k not in _OF_THE_METHOD}
    if is_distilled(settings):
        shared['model'] = {k: v for k, v in settings['model'].items() if k in _OF_THE_PAIR}
    return shared


def without_options_of_method(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``--cfg-options`` without those of a model's losses and other fields of a method."""
    return {
        option: value
        for option, value in options.items()
        if not option.startswith('model.') or option.split('.')[1] in _OF_THE_PAIR
    }


def teacher_file(settings: Settings) -> Path | None:
    """Return the path of the teacher checkpoint, or None if there is no local file.

    Raises:
        ConfigError: There are several teachers.
    """
    if isinstance(settings['model'].get('teacher'), (list, tuple)):
        raise ConfigError(
            'model.teacher: is a list; the benchmark and the search take pairs with one teacher'
        )
    checkpoint = settings['model'].get('teacher_checkpoint')
    if not checkpoint or REMOTE.match(checkpoint):
        return None
    return Path(checkpoint).expanduser()


def with_checksum(settings: Settings) -> Settings:
    """Return settings with the SHA-256 of the teacher checkpoint, None without a file.

    Stored settings keep the checksum of the teacher that they were trained with.
    """
    if 'teacher_sha256' in settings:
        return settings
    path = teacher_file(settings)
    known = path is not None and path.is_file()
    return settings | {'teacher_sha256': _sha256(path, path.stat().st_mtime_ns) if known else None}


@lru_cache
def _sha256(path: Path, modified: int) -> str:
    """Return the SHA-256 of a file; the cache depends on its modification time."""
    return hash_file(path)


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


def show(value: Any) -> str:
    """Return a value as one short text."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextmanager
def claim_folder(folder: Path, owner: str, wait: bool = False) -> Iterator[None]:
    """Create and lock a work directory, or check that an existing one belongs to this owner.

    Args:
        folder: The work directory.
        owner: What the folder belongs to, for errors: ``'benchmark'`` or ``'search'``.
        wait: Whether to wait for another process that works in it.

    Raises:
        ConfigError: If another process works in it and ``wait`` is False, or it belongs to another
            kind of owner, or it holds files of somebody else.
    """
    lock = folder / '.lock'
    other = next(folder.iterdir(), None) if folder.is_dir() else None
    if other is not None and not lock.is_file():
        raise ConfigError(
            f'--work-dir {folder}: does not belong to a {owner} and holds {other.name!r}; give an '
            'empty or a new directory'
        )
    folder.mkdir(parents=True, exist_ok=True)
    _read_owner(lock, owner)  # not to wait for a process that works on something else
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(lock, wait))
        except BlockingIOError:
            raise ConfigError(f'--work-dir {folder}: another {owner} is running in it') from None
        if not _read_owner(lock, owner):
            lock.write_text(owner)
        yield


def _read_owner(lock: Path, owner: str) -> str:
    """Return the owner that a lock file names, if it does; raise a ConfigError for another."""
    found = lock.read_text() if lock.is_file() else ''
    if found not in ('', owner):
        raise ConfigError(
            f'--work-dir {lock.parent}: belongs to a {found}, not to a {owner}; give an empty or a '
            'new directory'
        )
    return found
