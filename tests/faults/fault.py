"""A hook that sends a signal in the middle of a training step."""

from __future__ import annotations

import os
import signal

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Fault(Hook):
    """Send a signal in the middle of an iteration, unless torchrun restarted the run.

    Args:
        signal: Name of the signal.
        iteration: Number of the iteration, from 1.
        rank: Rank that sends the signal; None for all.
        to_parent: Send it to torchrun instead of the process itself.
    """

    def __init__(
        self, signal: str, iteration: int, rank: int | None = None, to_parent: bool = False
    ) -> None:
        self.signal, self.iteration = signal, int(iteration)
        self.rank, self.to_parent = rank, to_parent

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        restarted = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
        if runner.iter + 1 != self.iteration or restarted or self.rank not in (None, get_rank()):
            return
        os.kill(os.getppid() if self.to_parent else os.getpid(), signal.Signals[self.signal])
