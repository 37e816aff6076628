"""Log messages, and a console that shows only what concerns the user."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger, print_log

_PACKAGE = Path(__file__).parents[1]
_OPENMMLAB = ('mmengine', 'mmcv', 'mmpretrain')
_OF_LOGGING = (__name__, 'logging', 'mmengine.logging.logger')


def plural(count: int | str, noun: str) -> str:
    """Return a count with its noun: ``1 epoch``, ``2 epochs``.

    Args:
        count: The number.
        noun: The noun, in the singular.
    """
    return f'{count} {noun}' if str(count) == '1' else f'{count} {noun}s'


def percent(accuracy: float) -> str:
    """Return an accuracy as the console shows it, such as ``61.3 %``.

    Args:
        accuracy: The accuracy, in percent.
    """
    return f'{accuracy:.1f} %'


def shown_path(path: str) -> str:
    """Return a path relative to the current directory if it is below it.

    Args:
        path: The path.
    """
    here = Path.cwd()
    return str(Path(path).relative_to(here) if Path(path).is_relative_to(here) else path)


@contextmanager
def log_warnings_only() -> Iterator[None]:
    """Silence mmengine's current logger below the level of warnings."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Log only warnings, and on stderr, for a command whose result is on stdout."""
    consoles = list(filter(_is_console, MMLogger.get_current_instance().handlers))
    before = [handler.stream for handler in consoles]
    for handler in consoles:
        handler.setStream(sys.stderr)
    try:
        with log_warnings_only():
            yield
    finally:
        for handler, stream in zip(consoles, before, strict=True):
            handler.setStream(stream)


def tell(message: str) -> None:
    """Log a message that a quiet console shows, too.

    Args:
        message: The message.
    """
    MMLogger.get_current_instance().info(message, extra=dict(for_user=True))


@contextmanager
def quiet_console(quiet: bool = True) -> Iterator[None]:
    """Show only what concerns the user on the console; the log file gets everything.

    The console shows the messages of :func:`tell`, each warning once, and errors, without the time
    and the name of the logger. Warnings of the OpenMMLab packages, and those of Python's
    ``warnings`` that do not come from this package, are in the log file only.

    Args:
        quiet: Whether to do that. False: nothing changes.
    """
    if not quiet:
        yield
        return
    shown: set[str] = set()

    def call_handlers(logger: MMLogger, record: logging.LogRecord) -> None:
        for handler in logger.handlers:
            if record.levelno < handler.level:
                continue
            if not _is_console(handler):
                handler.handle(record)
            elif _concerns_user(record) and record.getMessage() not in shown:
                if record.levelno == logging.WARNING:
                    shown.add(record.getMessage())
                _write_plainly(handler, record)

    # A Runner logs its environment and its config while it is built, before its logger's handlers
    # could be changed.
    before = MMLogger.callHandlers, warnings.showwarning
    MMLogger.callHandlers, warnings.showwarning = call_handlers, _log_warning
    try:
        yield
    finally:
        MMLogger.callHandlers, warnings.showwarning = before


class _PlainFormatter(logging.Formatter):
    """The message, after ``warning:`` or ``error:`` if it is one."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = '' if record.levelno < logging.WARNING else f'{record.levelname.lower()}: '
        return prefix + super().format(record)


_PLAIN = _PlainFormatter()


def _is_console(handler: logging.Handler) -> bool:
    is_stream = isinstance(handler, logging.StreamHandler)
    return is_stream and not isinstance(handler, logging.FileHandler)


def _concerns_user(record: logging.LogRecord) -> bool:
    if record.levelno < logging.WARNING:
        return getattr(record, 'for_user', False)
    return record.levelno > logging.WARNING or _package_of_caller() not in _OPENMMLAB


def _package_of_caller() -> str:
    """Return the package that logs; the path in a record is that of mmengine's ``print_log``."""
    frame = sys._getframe()
    while frame.f_back and frame.f_globals.get('__name__') in _OF_LOGGING:
        frame = frame.f_back
    return frame.f_globals.get('__name__', '').partition('.')[0]


def _write_plainly(handler: logging.Handler, record: logging.LogRecord) -> None:
    formatter = handler.formatter
    handler.setFormatter(_PLAIN)
    handler.handle(record)
    handler.setFormatter(formatter)


def _log_warning(message: Warning, category: type, filename: str, lineno: int, *_: Any) -> None:
    if Path(filename).is_relative_to(_PACKAGE):
        print_log(str(message), 'current', logging.WARNING)
    else:
        print_log(f'{filename}:{lineno}: {category.__name__}: {message}', 'current')
