"""What befalls a run: a hook that sends a signal in the middle of a step."""

from __future__ import annotations

import os
import signal

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Fault(Hook):
    """Sends a signal in the middle of an iteration, unless torchrun has started the run again.

    Args:
        signal: Its name.
        iteration: Its number, from 1.
        rank: The process that does it; None: all.
        to_parent: Send it to torchrun and not to the process itself.
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
