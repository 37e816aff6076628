"""A run that is told to stop, and loses nothing."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner

from mldr_kd_mm.engine.hooks.checkpoint import AtomicCheckpointHook
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import DeferredAllReduce
from mldr_kd_mm.utils.errors import ConfigError


@HOOKS.register_module()
class StopSignalHook(Hook):
    """On a signal, saves a checkpoint after the step at hand and ends the run.

    All processes stop after the same step, whichever got the signal, and exit with code 130 after
    SIGINT and 143 after the others. With gradient accumulation the step is the optimizer's.
    Before and after training a signal does what it always does.

    Args:
        signals: Names of the signals. SIGUSR1 is what one tells Slurm to send before the time is
            over: ``sbatch --signal=USR1@120``.

    Raises:
        ConfigError: If there is no signal of a name.
    """

    priority = 'LOWEST'  # the checkpoint must have what the other hooks do after a step

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGINT', 'SIGUSR1')) -> None:
        known = {known.name: known for known in signal.Signals}
        if isinstance(signals, str) or not set(signals) <= {*known}:
            raise ConfigError(f"signals={signals!r}: must be names of signals, such as ['SIGTERM']")
        self.signals = [known[name] for name in signals]
        self._handlers: dict[signal.Signals, Any] = {}

    def before_run(self, runner: Runner) -> None:
        """Let the data loaders' workers outlive a signal, which may go to them too."""
        for loop in (runner._train_loop, runner._val_loop):
            if isinstance(loop, BaseLoop):
                loader = loop.dataloader
                loader.worker_init_fn = partial(_start_deaf, self.signals, loader.worker_init_fn)
        # Before multiprocessing's own, which sends SIGTERM to what is left, and then waits.
        atexit.unregister(_end_workers)
        atexit.register(_end_workers)

    def before_train(self, runner: Runner) -> None:
        """Begin to listen."""
        self._asked = self._agreed = 0
        self._votes = DeferredAllReduce()
        hooks = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
        self._checkpoints = hooks[0] if hooks else AtomicCheckpointHook()
        if not hooks:
            self._checkpoints.before_train(runner)
        # Python gives signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in self.signals}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save and exit if any process was told to stop."""
        device = next(runner.model.parameters()).device
        votes = self._votes.reduce(torch.tensor([self._asked], device=device))
        if votes is not None:
            self._agreed = max(self._agreed, int(votes))
        if not self._agreed or not _has_stepped(runner):
            return
        path = self._checkpoints.save_now(runner)
        runner.logger.warning(
            f'Told to stop: {path} was saved after iteration {runner.iter + 1}; --resume goes on '
            'from there'
        )
        self.after_train(runner)
        raise SystemExit(self._agreed)

    def after_train(self, runner: Runner) -> None:
        """Put the handlers back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _note(self, number: int, _: Any) -> None:
        self._asked = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def _has_stepped(runner: Runner) -> bool:
    """Whether the gradients of this iteration have gone into the weights."""
    wrapper = runner.optim_wrapper
    return not isinstance(wrapper, OptimWrapper) or wrapper.should_update()


def _start_deaf(numbers: Sequence[int], start: Callable | None, worker: int) -> None:
    """Start a worker that ignores signals; it ends when it is told to, or with its process."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    if start is not None:
        start(worker)


def _end_workers() -> None:
    """End, with this process, the workers that nobody has ended."""
    # torch's handler would call it a failure.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
