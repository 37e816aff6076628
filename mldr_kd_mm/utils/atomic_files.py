"""Atomic file writes."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mmengine.fileio import LocalBackend, register_backend

UNFINISHED = '.unfinished'


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces ``path`` once it is complete and on disk.

    The content is written to ``path`` + ``.RANDOM.unfinished`` first, so that several processes can
    write the same file. After an error that file is removed and an existing ``path`` is unchanged.

    Args:
        path: The file to write.

    Yields:
        The open file.

    Raises:
        OSError: The file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    unfinished = path.with_name(f'{path.name}.{secrets.token_hex(4)}{UNFINISHED}')
    try:
        with open(unfinished, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    # The new name is on disk only after its folder has been flushed.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class AtomicFileBackend(LocalBackend):
    """mmengine's backend for local files with atomic writes."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(filepath) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


def use_atomic_writes() -> None:
    """Make mmengine write local files, checkpoints included, atomically in this process."""
    register_backend('local', AtomicFileBackend, force=True, prefixes='')
