"""Progress bars on a terminal; without a terminal they do nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_REFRESH_INTERVAL = 0.1  # seconds


class _Display:
    """Bars of ``rich`` on stderr, drawn by the training thread.

    rich's own refresh thread could hold a lock while a data loader forks, which would block the
    loader's workers forever.
    """

    def __init__(self) -> None:
        self._progress = Progress(
            # A name may contain brackets, which are markup to rich.
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
        self._refreshed = 0.0
        stdout = sys.stdout
        self._progress.start()
        # The logger still writes to the old stdout, where its lines would tear the bars apart.
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
            self._refreshed = 0.0
        self._progress.update(self._tasks[name], **fields)
        if time.monotonic() - self._refreshed > _REFRESH_INTERVAL:
            self._progress.refresh()
            self._refreshed = time.monotonic()

    def remove(self, name: str) -> None:
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))

    def close(self) -> None:
        self._progress.stop()
        for handler in self._handlers:
            handler.setStream(sys.stdout)


# All callers share the one terminal.
_display: _Display | None = None


def open_bars() -> None:
    """Open the display if stderr is a terminal and this is the main process."""
    global _display
    if _display is None and sys.stderr.isatty() and is_main_process():
        _display = _Display()


def is_open() -> bool:
    """Return whether the display is open."""
    return _display is not None


def show_bar(name: str, **fields: Any) -> None:
    """Create or update a bar.

    Args:
        name: Text before the bar.
        **fields: ``completed`` and ``total`` steps, the latter in the first call for a name, and
            ``state``, text after the bar.
    """
    if _display is not None:
        _display.show(name, **fields)


def remove_bar(name: str) -> None:
    """Remove a bar; the display closes with the last one."""
    if _display is not None:
        _display.remove(name)
        if _display.is_empty:
            close_bars()


def close_bars() -> None:
    """Close the display if it is open; call it after an error, when no hook runs."""
    global _display
    if _display is not None:
        _display.close()
        _display = None


def track(batches: Any, name: str) -> Iterator[Any]:
    """Iterate over batches and show a bar meanwhile.

    Args:
        batches: Iterable with a length.
        name: Text before the bar.

    Yields:
        The batches.
    """
    open_bars()
    show_bar(name, completed=0, total=len(batches))
    try:
        for done, batch in enumerate(batches, 1):
            yield batch
            show_bar(name, completed=done)
    finally:
        remove_bar(name)
