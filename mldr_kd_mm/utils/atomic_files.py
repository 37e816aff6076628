"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mmengine.fileio import LocalBackend, register_backend

UNFINISHED = '.unfinished'


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Write a file that takes the place of the old one once all of it is on the disk.

    Until then it has another name, ``path`` with ``.unfinished`` behind it. After an error nothing
    is left of it, and the old file is as it was.

    Args:
        path: Where the file will be.

    Raises:
        OSError: The disk is full, or whatever else keeps it from being written.
    """
    path = Path(path)
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        unfinished.unlink(missing_ok=True)  # where it is a link, what it points to stays
        with open(unfinished, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    # The new name is on the disk when the folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class AtomicFileBackend(LocalBackend):
    """mmengine's backend for local files; what it writes replaces the old file at once."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(filepath) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


def use_atomic_writes() -> None:
    """From now on let mmengine write its local files, checkpoints among them, as whole ones."""
    register_backend('local', AtomicFileBackend, force=True, prefixes='')
