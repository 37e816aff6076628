"""The work directory of a run: one run at a time, and no earlier run is replaced by accident."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mmengine.config import Config

from mldr_kd_mm.utils.errors import ConfigError, printable

LOCK = 'run.lock'

_CHECKPOINT = re.compile(r'((epoch|iter)_\d+|best_.+)\.pth')
# A forked process inherits this dict, but not the locks.
_held: dict[tuple[int, Path], IO] = {}


@contextmanager
def claim_work_dir(cfg: Config, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold the work directory of a run that this process starts.

    Args:
        cfg: Config of the run. Its ``work_dir`` is created if necessary.
        resume: Whether the run continues an earlier one.
        overwrite: Whether to delete the checkpoints of an earlier run. A resumed run keeps them.

    Raises:
        ConfigError: Another process is training there, the directory has checkpoints of an earlier
            run and both switches are off, or the config reads a checkpoint that would be deleted.
    """
    is_new = lock_work_dir(cfg.work_dir)
    try:
        earlier = [] if resume else _list_run(Path(cfg.work_dir))
        if earlier and not overwrite:
            raise ConfigError(
                f'work_dir={cfg.work_dir!r}: has checkpoints of an earlier run; continue it with '
                '--resume (resume=True), replace it with --overwrite (overwrite=True), or choose '
                'another work directory'
            )
        _remove(earlier, cfg)
        yield
    finally:
        if is_new:
            unlock_work_dir(cfg.work_dir)


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
    try:
        key[1].parent.mkdir(parents=True, exist_ok=True)
        file = key[1].open('a+')
    except OSError as error:
        raise ConfigError(
            f'work_dir={str(work_dir)!r}: cannot be written: {error.strerror}'
        ) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        owner = printable(file.read(200)) or 'another process'
        file.close()
        raise ConfigError(
            f'work_dir={str(work_dir)!r}: {owner} is training here; wait for it, stop it, or '
            'choose another work directory'
        ) from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    _held[key] = file
    return True


def unlock_work_dir(work_dir: str) -> None:
    """Release the lock of :func:`lock_work_dir`."""
    _held.pop(_key(work_dir)).close()


def _key(work_dir: str) -> tuple[int, Path]:
    return os.getpid(), Path(work_dir).resolve() / LOCK


def _list_run(work_dir: Path) -> list[Path]:
    """Return the checkpoints of a run and the file that names the last one."""
    return [
        path
        for path in work_dir.iterdir()
        if path.name == 'last_checkpoint' or _CHECKPOINT.fullmatch(path.name)
    ]


def _remove(checkpoints: list[Path], cfg: Config) -> None:
    """Delete the checkpoints of a run, unless the config reads one of them."""
    read = [Path(text) for text in _texts(cfg.to_dict())]
    for path in checkpoints:
        if any(file.name == path.name and file.resolve() == path.resolve() for file in read):
            raise ConfigError(
                f'--overwrite would delete {path}, which the config reads; move it to another '
                'directory'
            )
    for path in checkpoints:
        if path.is_dir() and not path.is_symlink():  # a checkpoint of DeepSpeed or FSDP
            shutil.rmtree(path)
        else:
            path.unlink()


def _texts(value: Any) -> Iterator[str]:
    """Yield all texts in nested dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
