"""Logging helpers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger


@contextmanager
def log_warnings_only() -> Iterator[None]:
    """Log warnings only: the Runner will say the rest again, in its own log."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        yield
    finally:
        logger.setLevel(level)
