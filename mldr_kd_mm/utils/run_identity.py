"""Identity of a run: which checkpoints and logs of a work directory belong together."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.checkpoint import has_training_state, load_checkpoint

RECORD = 'run.json'
"""Name of the record in a work directory, and in a checkpoint that is a directory."""

LAUNCH_VARIABLE = 'MLDR_KD_LAUNCH'
"""Variable in which ``tools/dist_train.sh`` passes a random name of the launch to its processes."""

_ID = re.compile('[0-9a-f]{32}')
_MAX_RECORD = 1_000_000  # bytes
# The fields of a config that decide the weights.
_DECISIVE = (
    'model',
    'data_preprocessor',
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'custom_hooks',
    'randomness',
    'strategy',
)
_INDECISIVE = {'num_workers', 'pin_memory', 'persistent_workers', 'prefetch_factor', 'val_interval'}
_WEIGHT_FILES = {'checkpoint', 'checkpoint_path', 'teacher_checkpoint'}


class Origin(NamedTuple):
    """The run that saved a checkpoint, and when.

    Attributes:
        run: Id of the run; empty if the checkpoint has none.
        epoch: Epochs trained.
        iteration: Iterations trained.
    """

    run: str
    epoch: int
    iteration: int

    @classmethod
    def read(cls, path: str | Path, field: str = 'resume') -> Origin | None:
        """Read the origin of a checkpoint, without its tensors.

        Args:
            path: A file, or a directory of DeepSpeed or FSDP.
            field: Name of the config field that holds the path, for error messages.

        Returns:
            The origin; None for a file from which no run can resume, such as weights.

        Raises:
            MissingFileError: There is no such file.
            ConfigError: The file cannot be read.
        """
        if os.path.isdir(path):
            content = dict(meta=_read_json(Path(path, RECORD)) or dict(iter=0))
        else:
            content = load_checkpoint(str(path), field, read_tensors=False)
        return cls.of(content)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Origin | None:
        """Return the origin of a checkpoint.

        Args:
            content: Content of the checkpoint.

        Returns:
            The origin; None if no run can resume from the checkpoint.
        """
        if not has_training_state(content):
            return None
        meta = content['meta']
        run = meta.get('run')
        identity = run.get('id') if isinstance(run, Mapping) else None
        epoch, iteration = (
            value if type(value) is int else 0 for value in (meta.get('epoch'), meta['iter'])
        )
        return cls(identity if _is_id(identity) else '', epoch, iteration)


@dataclass(frozen=True)
class RunIdentity:
    """Identity of a run.

    It is stored as ``run.json`` in the work directory, from the run's first checkpoint on, and in
    part as ``meta['run']`` in each checkpoint. Both move with the files when a work directory is
    copied. All names in it are relative to the work directory.

    Attributes:
        id: Random id, 32 hexadecimal digits.
        fingerprint: Hash of the config fields and files of weights that decide the run's weights,
            see :func:`fingerprint`.
        parent: Id of the run that it was forked from with ``--resume CHECKPOINT``.
        history: The runs whose checkpoints in the same directory it continues: origins of the
            last ones that count.
        launches: Names of the launches of its last part, see :func:`was_restarted`.
        logs: Names of the folders of its logs, in the order of their start.
    """

    id: str
    fingerprint: str
    parent: str | None = None
    history: tuple[Origin, ...] = ()
    launches: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()

    @classmethod
    def read(cls, work_dir: str | Path) -> RunIdentity | None:
        """Read the record of a work directory.

        Args:
            work_dir: The directory.

        Returns:
            The identity; None if there is no record or it is damaged.
        """
        record = _read_json(Path(work_dir, RECORD))
        try:
            identity = cls(
                id=record['id'],
                fingerprint=record['fingerprint'],
                parent=record['parent'],
                history=tuple(Origin(*origin) for origin in record['history']),
                launches=tuple(record['launches']),
                logs=tuple(record['logs']),
            )
        except (KeyError, TypeError):
            return None
        is_whole = (
            _is_id(identity.id)
            and isinstance(identity.fingerprint, str)
            and (identity.parent is None or _is_id(identity.parent))
            and all(
                isinstance(origin.run, str) and type(origin.epoch) is type(origin.iteration) is int
                for origin in identity.history
            )
            and all(isinstance(name, str) for name in (*identity.launches, *identity.logs))
            and all(Path(name).name == name for name in identity.logs)
        )
        return identity if is_whole else None

    def write(self, work_dir: str | Path) -> None:
        """Write the record of a work directory atomically.

        Args:
            work_dir: The directory.

        Raises:
            OSError: It cannot be written.
        """
        with atomic_write(Path(work_dir, RECORD)) as file:
            file.write(json.dumps(asdict(self), indent=1).encode() + b'\n')

    def write_to_checkpoint(self, folder: str | Path, progress: Mapping[str, int]) -> None:
        """Write the origin of a checkpoint that is a directory.

        Args:
            folder: The checkpoint.
            progress: ``epoch`` and ``iter``, the epochs and iterations trained.

        Raises:
            OSError: It cannot be written.
        """
        meta = dict(run=self.to_meta(), epoch=progress['epoch'], iter=progress['iter'])
        with atomic_write(Path(folder, RECORD)) as file:
            file.write(json.dumps(meta).encode() + b'\n')

    def to_meta(self) -> dict[str, str | None]:
        """Return the part that each checkpoint stores as ``meta['run']``."""
        return dict(id=self.id, fingerprint=self.fingerprint, parent=self.parent)

    def owns(self, origin: Origin) -> bool:
        """Return whether a checkpoint in the run's directory belongs to it."""
        return origin.run == self.id or any(
            origin.run == last.run and origin[1:] <= last[1:] for last in self.history
        )


def new_id() -> str:
    """Return a random id."""
    return secrets.token_hex(16)


def fingerprint(cfg: Config, processes: int = 1) -> str:
    """Hash what decides the weights of a run.

    These are the model, the training data's config, the optimizer and its schedules, the loop, the
    custom hooks, the seed, the number of processes, and the content of the files of weights that
    the model reads. The content of the data set is not included.

    Args:
        cfg: Config of the run.
        processes: Number of its processes.

    Returns:
        64 hexadecimal digits.
    """
    fields = {name: cfg.get(name) for name in _DECISIVE}
    text = json.dumps([_canonical(fields), processes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits.

    Args:
        path: The file.
    """
    state = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def current_launches() -> tuple[str, ...]:
    """Return names of what started this process, the same in all its restarts."""
    names = []
    if 'TORCHELASTIC_RESTART_COUNT' in os.environ:
        names.append(_torchrun())
    if 'SLURM_JOB_ID' in os.environ:
        names.append(_slurm())
    return tuple(names)


def was_restarted(record: RunIdentity | None) -> bool:
    """Return whether this process continues a run that its own launch has started.

    torchrun starts all processes again when one has ended (``MAX_RESTARTS``), and Slurm a job that
    was requeued. If the earlier attempt saved no checkpoint, the work directory may still hold the
    record of another run.

    Args:
        record: Record of the work directory.
    """
    names = []
    if int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)):
        names.append(_torchrun())
    if int(os.environ.get('SLURM_RESTART_COUNT', 0)):
        names.append(_slurm())
    return record is not None and any(name in record.launches for name in names)


def _torchrun() -> str:
    # All processes of a machine have torchrun as their parent.
    default = f'{socket.gethostname()}:{os.getppid()}'
    return f'torchrun {os.environ.get(LAUNCH_VARIABLE, default)}'


def _slurm() -> str:
    return f'slurm {os.environ.get("SLURM_JOB_ID")}'


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _read_json(path: Path) -> Any:
    """Return the content of a small JSON file, or None if there is none."""
    try:
        if not path.is_file():  # opening a pipe would wait for its other end
            return None
        with path.open('rb') as file:
            return json.loads(file.read(_MAX_RECORD))
    except (OSError, ValueError, RecursionError):
        return None


def _canonical(value: Any, key: str | None = None) -> Any:
    """Return a value of a config as what JSON can hold, without what does not decide weights."""
    if isinstance(value, Mapping):
        return {
            str(name): _canonical(item, name)
            for name, item in value.items()
            if name not in _INDECISIVE
        }
    if isinstance(value, (list, tuple)):
        return [_canonical(item, key) for item in value]
    if isinstance(value, str) and key in _WEIGHT_FILES and os.path.isfile(value):
        return hash_file(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, '__qualname__', type(value).__qualname__)
