"""Locks between processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def lock_file(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel releases it if the process dies.

    Args:
        path: The lock file. It is created if necessary and never removed.
        wait: Whether to wait until the lock is free.

    Raises:
        BlockingIOError: ``wait`` is False and another process holds the lock.
    """
    with path.open('a') as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
