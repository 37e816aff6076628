"""Work that one process does for all."""

from __future__ import annotations

from collections.abc import Callable

from mmengine import dist

from mldr_kd_mm.errors import ConfigError


def main_process_first(work: Callable[[], None]) -> None:
    """Let the main process work while the others wait for its success or error.

    Raises:
        Exception: What the work raised; in the other processes a ConfigError with its message.
    """
    error = None
    if dist.is_main_process():
        try:
            work()
        except Exception as caught:
            error = caught
    # A barrier would leave the others waiting for a main process that has already failed.
    message = [None if error is None else f'{error}' or repr(error)]
    dist.broadcast_object_list(message)
    if error is not None:
        raise error
    if message[0] is not None:
        raise ConfigError(message[0])
