"""What the processes of a run do for each other, and agree on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from mmengine import dist
from torch import Tensor

from mldr_kd_mm.utils.errors import ConfigError

T = TypeVar('T')


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise in every process what was raised in one; all must come to the end of the ``with``.

    A process that failed alone would leave the others waiting for it. One may be within another.

    Raises:
        Exception: What this process raised; a ConfigError with its message in the others.
    """
    error = None
    try:
        yield
    except Exception as caught:
        if getattr(caught, 'known_to_all', False):  # raised by one within this one
            raise
        error = caught
    message = None if error is None else f'{error}' or repr(error)
    messages = dist.all_gather_object(message)
    if error is None:
        error = next((ConfigError(message) for message in messages if message is not None), None)
    if error is not None:
        error.known_to_all = True
        raise error


def main_process_first(work: Callable[[], None]) -> None:
    """Let the main process work while the others wait for its success or error.

    Raises:
        Exception: What the work raised; in the other processes a ConfigError with its message.
    """
    with failing_together():
        if dist.is_main_process():
            work()


def from_main_process(work: Callable[[], T]) -> T:
    """Let the main process find a value for all; see :func:`main_process_first` for errors."""
    found = [None]
    main_process_first(lambda: found.__setitem__(0, work()))
    dist.broadcast_object_list(found)
    return found[0]


class Votes:
    """The flags of each step, the largest over all processes; no host waits for its GPU.

    On a CPU they are known at once. On a GPU they are given out some steps later, when it has long
    computed them, and at the same step in all processes.

    Args:
        lag: How many steps later.
    """

    def __init__(self, lag: int = 2) -> None:
        self.lag = lag
        self._open: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def cast(self, flags: Tensor) -> Tensor | None:
        """Vote; every process must.

        Args:
            flags: This process's flags (N,) of this step, on the device that trains.

        Returns:
            The flags (N,) of all processes, on the CPU: of this step, or on a GPU of the step
            ``lag`` steps ago, None before there is one.
        """
        dist.all_reduce(flags, 'max')
        if flags.device.type == 'cpu':
            return flags
        here = torch.empty_like(flags, device='cpu', pin_memory=True)
        here.copy_(flags, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._open.append((here, done))
        if len(self._open) <= self.lag:
            return None
        here, done = self._open.popleft()
        done.synchronize()
        return here
