"""Agreement between the processes of a distributed run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from mmengine import dist
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mldr_kd_mm.utils.errors import ConfigError

T = TypeVar('T')


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside a distributed wrapper, or the model itself if it has none.

    Args:
        model: A Runner's model.
    """
    return model.module if is_model_wrapper(model) else model


@contextmanager
def raise_on_all_ranks() -> Iterator[None]:
    """Raise an exception of any rank on every rank.

    A rank that failed alone would leave the others waiting for it. Every rank must reach the end of
    the ``with`` block. Blocks may be nested.

    Raises:
        Exception: The exception of this rank. The other ranks raise a ConfigError with its message.
    """
    error = None
    try:
        yield
    except Exception as caught:
        if getattr(caught, 'known_to_all', False):  # raised by a nested block
            raise
        error = caught
    message = None if error is None else f'{error}' or repr(error)
    messages = dist.all_gather_object(message)
    if error is None:
        error = next((ConfigError(message) for message in messages if message is not None), None)
    if error is not None:
        error.known_to_all = True
        raise error


def run_on_main_process(work: Callable[[], T]) -> T:
    """Run a function on the main process and return its result on every rank.

    Args:
        work: The function. The other ranks wait until it returns or raises.

    Returns:
        The result of ``work``, sent to the other ranks by pickle.

    Raises:
        Exception: The exception of ``work``. The other ranks raise a ConfigError with its message.
    """
    result: list[T | None] = [None]
    with raise_on_all_ranks():
        if dist.is_main_process():
            result[0] = work()
    dist.broadcast_object_list(result)
    return result[0]


class DeferredAllReduce:
    """All-reduce (max) of small flags that never makes the host wait for its GPU.

    On a CPU the result is available at once. On a GPU it is returned a few steps later, when it was
    computed long ago, and at the same step on all ranks.

    Args:
        lag: How many steps later a GPU's result is returned.
    """

    def __init__(self, lag: int = 2) -> None:
        self.lag = lag
        self._pending: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def reduce(self, flags: Tensor) -> Tensor | None:
        """Reduce the flags of a step in place; every rank must call it.

        Args:
            flags: This rank's flags (N,) on the training device. They become the maximum over all
                ranks.

        Returns:
            The maximum over all ranks (N,) on the CPU: of this step, or on a GPU of the step
            ``lag`` steps ago and None during the first ``lag`` steps.
        """
        dist.all_reduce(flags, 'max')
        if flags.device.type == 'cpu':
            return flags
        on_host = torch.empty_like(flags, device='cpu', pin_memory=True)
        on_host.copy_(flags, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending.append((on_host, copied))
        if len(self._pending) <= self.lag:
            return None
        on_host, copied = self._pending.popleft()
        copied.synchronize()
        return on_host
