"""Bars of progress on a terminal where ``rich`` is installed; elsewhere this does nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import MMLogger

# Between two drawings of the bars, in seconds.
_PAUSE = 0.1


class _Display:
    """rich's bars on the terminal that is stderr, drawn by the thread that trains.

    rich's own thread could hold a lock while a data loader forks, for ever in its workers.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            # A name may be that of a folder, with brackets.
            TextColumn('{task.description:<7}', markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn('{task.fields[state]}'),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
            speed_estimate_period=3600,  # a step may take long
        )
        self._tasks: dict[str, Any] = {}
        self._drawn = 0.0
        stdout = sys.stdout
        self._progress.start()
        # The logger has kept the stream that there was; on it its lines would tear the bars.
        handlers = MMLogger.get_current_instance().handlers
        self._handlers = [h for h in handlers if getattr(h, 'stream', None) is stdout]
        for handler in self._handlers:
            handler.setStream(sys.stdout)

    @property
    def is_empty(self) -> bool:
        return not self._tasks

    def show(self, name: str, **fields: Any) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, state='', **fields)
            self._drawn = 0.0
        self._progress.update(self._tasks[name], **fields)
        if time.monotonic() - self._drawn > _PAUSE:
            self._progress.refresh()
            self._drawn = time.monotonic()

    def remove(self, name: str) -> None:
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def close(self) -> None:
        self._progress.stop()
        for handler in self._handlers:
            handler.setStream(sys.stdout)


# A terminal has one place for bars, whoever shows them.
_display: _Display | None = None


def open_bars() -> None:
    """Begin to show bars, if stderr is a terminal and this is the main process."""
    global _display
    on_terminal = sys.stderr.isatty() and is_main_process()
    if _display is None and on_terminal and find_spec('rich') is not None:
        _display = _Display()


def is_open() -> bool:
    """Whether bars are shown."""
    return _display is not None


def show_bar(name: str, **fields: Any) -> None:
    """Draw a bar, or move it.

    Args:
        name: Stands before the bar.
        fields: ``total``, which its first call needs, ``completed``, and ``state``, a text.
    """
    if _display is not None:
        _display.show(name, **fields)


def remove_bar(name: str) -> None:
    """Take a bar away, and with the last one the display."""
    if _display is not None:
        _display.remove(name)
        if _display.is_empty:
            close_bars()


def close_bars() -> None:
    """Take all bars away, if there are any: after an error no hook is called."""
    global _display
    if _display is not None:
        _display.close()
        _display = None


def track(batches: Any, name: str) -> Iterator[Any]:
    """Yield the batches and show how many there were.

    Args:
        batches: Anything that has a length.
        name: Stands before the bar.
    """
    open_bars()
    show_bar(name, completed=0, total=len(batches))
    try:
        for done, batch in enumerate(batches, 1):
            yield batch
            show_bar(name, completed=done)
    finally:
        remove_bar(name)
