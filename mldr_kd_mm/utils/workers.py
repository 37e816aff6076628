"""Worker processes of data loaders, and the cores for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess


def available_cores() -> int:
    """Return the number of cores that this process may use, which can be fewer than there are."""
    return len(os.sched_getaffinity(0))


def default_workers() -> int:
    """Return the number of workers of a data loader: one per core, at most 8."""
    return min(8, available_cores())


def kill_workers(but: Sequence[BaseProcess] = ()) -> None:
    """Kill the daemonic child processes, which data-loader workers are.

    torch waits for each worker in turn, ten seconds if it ignores SIGTERM. Other threads than the
    main thread leave the workers to torch, since they cannot change signal handlers.

    Args:
        but: Processes to keep.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    workers = [worker for worker in workers if worker not in but]
    # torch's handler would report them as failed.
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
