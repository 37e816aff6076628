"""Logging helpers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger


def plural(count: int | str, noun: str) -> str:
    """Return a count with its noun: ``1 epoch``, ``2 epochs``.

    Args:
        count: The number.
        noun: The noun, in the singular.
    """
    return f'{count} {noun}' if str(count) == '1' else f'{count} {noun}s'


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
