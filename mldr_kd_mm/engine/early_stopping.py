"""State of mmengine's EarlyStoppingHook in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

from mldr_kd_mm.utils.errors import is_number


def early_stopping_state(runner: Runner) -> dict[str, list[float]]:
    """Return the best score and the number of validations since then, by metric."""
    return {hook.monitor: [float(hook.best_score), hook.wait_count] for hook in _hooks(runner)}


def restore_early_stopping(runner: Runner, meta: Mapping[str, Any]) -> None:
    """Restore the state of :func:`early_stopping_state` from a checkpoint's ``meta``.

    A state that is missing or malformed is ignored.
    """
    saved = meta.get('early_stopping')
    for hook in _hooks(runner):
        state = saved.get(hook.monitor) if isinstance(saved, dict) else None
        if isinstance(state, (list, tuple)) and len(state) == 2 and all(map(is_number, state)):
            hook.best_score, hook.wait_count = state


def _hooks(runner: Runner) -> Iterator[EarlyStoppingHook]:
    return (hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook))
