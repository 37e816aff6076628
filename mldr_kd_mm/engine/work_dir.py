"""The work directory of a run: one run at a time, and no earlier run is replaced by accident."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from mmengine.config import Config

from mldr_kd_mm.utils.errors import ConfigError, printable

LOCK = 'run.lock'

_CHECKPOINT = re.compile(r'((epoch|iter)_\d+|best_.+)\.pth')
# A forked process inherits this dict, but not the locks.
_held: dict[tuple[int, Path], IO] = {}


@contextmanager
def claim_work_dirs(runs: Sequence[tuple[Config, bool]], overwrite: bool) -> Iterator[None]:
    """Hold the work directories of the runs that this process starts.

    Nothing is deleted unless all directories can be used.

    Args:
        runs: Config of each run, and whether it continues an earlier one, whose checkpoints are
            then kept. The ``work_dir`` is created if necessary.
        overwrite: Whether to delete the checkpoints of the other earlier runs.

    Raises:
        ConfigError: Another process is training there, a directory has checkpoints of an earlier
            run and ``overwrite`` is off, or a config reads a checkpoint that would be deleted.
    """
    with ExitStack() as stack:
        earlier = []
        for cfg, continues in runs:
            if lock_work_dir(cfg.work_dir):
                stack.callback(unlock_work_dir, cfg.work_dir)
            found = [] if continues else _list_run(Path(cfg.work_dir))
            if found and not overwrite:
                raise ConfigError(
                    f'work_dir={cfg.work_dir!r}: has checkpoints of an earlier run; continue it '
                    'with --resume (resume=True), replace it with --overwrite (overwrite=True), or '
                    'choose another work directory'
                )
            _check_unread(found, cfg)
            earlier += found
        for path in earlier:
            if path.is_dir() and not path.is_symlink():  # a checkpoint of DeepSpeed or FSDP
                shutil.rmtree(path)
            else:
                path.unlink()
        yield


def lock_work_dir(work_dir: str) -> bool:
    """Lock a work directory for this process until :func:`unlock_work_dir`.

    The kernel releases the lock when the process ends in any way. Data-loader workers do not
    inherit it, so they cannot keep it after their run was killed.

    Args:
        work_dir: The directory. It is created if necessary.

    Returns:
        Whether the lock is new: False if this process holds it already.

    Raises:
        ConfigError: Another process holds the lock, or the directory cannot be written.
    """
    key = _key(work_dir)
    if key in _held:
        return False
    file = _lock(key[1])
    while not _is_there(file):  # another process deleted it after it had been opened here
        file.close()
        file = _lock(key[1])
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    _held[key] = file
    return True


def unlock_work_dir(work_dir: str) -> None:
    """Release the lock of :func:`lock_work_dir`, and delete its file."""
    with _held.pop(_key(work_dir)) as file, suppress(OSError):
        if _is_there(file):
            os.unlink(file.name)


def _lock(path: Path) -> IO:
    """Open and lock the file of a lock; its folder is created if necessary."""
    work_dir = str(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open('a+')
    except OSError as error:
        raise ConfigError(f'work_dir={work_dir!r}: cannot be written: {error.strerror}') from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = printable(file.read(200)) or 'another process'
        file.close()
        raise ConfigError(
            f'work_dir={work_dir!r}: {owner} is training here; wait for it, stop it, or choose '
            'another work directory'
        ) from None
    return file


def _is_there(file: IO) -> bool:
    """Return whether an open file is still the one under its name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    return False


def _key(work_dir: str) -> tuple[int, Path]:
    return os.getpid(), Path(work_dir).resolve() / LOCK


def _list_run(work_dir: Path) -> list[Path]:
    """Return the checkpoints of a run and the file that names the last one."""
    return [
        path
        for path in work_dir.iterdir()
        if path.name == 'last_checkpoint' or _CHECKPOINT.fullmatch(path.name)
    ]


def _check_unread(checkpoints: list[Path], cfg: Config) -> None:
    """Refuse to delete a checkpoint that the config reads."""
    read = [Path(text) for text in _texts(cfg.to_dict())]
    for path in checkpoints:
        if any(file.name == path.name and file.resolve() == path.resolve() for file in read):
            raise ConfigError(
                f'--overwrite would delete {path}, which the config reads; move it to another '
                'directory'
            )


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in nested dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
