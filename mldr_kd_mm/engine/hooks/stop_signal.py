"""Stop a run on a signal without losing progress."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner

from mldr_kd_mm.engine.hooks.checkpoint import AtomicCheckpointHook
from mldr_kd_mm.engine.hooks.non_finite import NonFiniteHook
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import DeferredAllReduce
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.workers import kill_workers

_LAUNCHED = 'TORCHELASTIC_RUN_ID'  # set by torchrun


@HOOKS.register_module()
class StopSignalHook(Hook):
    """Saves a checkpoint and ends the run after the current step when a signal arrives.

    All ranks stop after the same step, whichever received the signal, and exit with code 130 after
    SIGINT and 143 after other signals. With gradient accumulation, a step means an optimizer step.
    A signal during the last validation has the same exit code, so that no stage follows. Before and
    after training, signals have their usual effect. A run whose launcher, torchrun, was killed
    stops in the same way, with code 143.

    Args:
        signals: Names of the signals. Slurm can send SIGUSR1 before a job's time limit with
            ``sbatch --signal=USR1@120``.

    Raises:
        ConfigError: There is no signal of that name.
    """

    priority = 'LOWEST'  # the checkpoint must include the changes of the other hooks

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGINT', 'SIGUSR1')) -> None:
        known = {known.name: known for known in signal.Signals}
        if isinstance(signals, str) or not set(signals) <= {*known}:
            raise ConfigError(f"signals={signals!r}: must be names of signals, such as ['SIGTERM']")
        self.signals = [known[name] for name in signals]
        self._handlers: dict[signal.Signals, Any] = {}
        self._parent = os.getppid()

    def before_run(self, runner: Runner) -> None:
        """Make data-loader workers ignore the signals, which may be sent to them as well."""
        for loop in (runner._train_loop, runner._val_loop):
            if isinstance(loop, BaseLoop):
                loader = loop.dataloader
                loader.worker_init_fn = partial(
                    _ignore_signals, self.signals, loader.worker_init_fn
                )
        # Runs before multiprocessing's own handler, which sends SIGTERM to the workers and waits.
        atexit.unregister(kill_workers)
        atexit.register(kill_workers)

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers."""
        self._requested_code = self._agreed_code = 0
        self._all_reduce = DeferredAllReduce()
        others = [hook for hook in runner.hooks if isinstance(hook, NonFiniteHook)]
        self._votes_with = next((h for h in others if h.share_all_reduce(self._code)), None)
        hooks = [hook for hook in runner.hooks if isinstance(hook, AtomicCheckpointHook)]
        self._checkpoints = hooks[0] if hooks else AtomicCheckpointHook()
        if not hooks:
            self._checkpoints.before_train(runner)
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {
                number: signal.signal(number, self._handle) for number in self.signals
            }

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Save a checkpoint and exit if any rank received a signal."""
        self._agreed_code = max(self._agreed_code, self._agree(runner))
        if not self._agreed_code or not _has_stepped(runner):
            return
        path = self._checkpoints.save_now(runner)
        runner.logger.warning(
            f'Stop signal: saved {path} after iteration {runner.iter + 1}; continue with --resume'
        )
        self.restore_handlers()
        raise SystemExit(self._agreed_code)

    def after_train(self, runner: Runner) -> None:
        """Restore the signal handlers; exit if a signal arrived after the last step."""
        self.restore_handlers()
        code = max(dist.all_gather_object(self._requested_code))
        if code:
            runner.logger.warning('Stop signal: it arrived after the last step; training has ended')
            raise SystemExit(code)

    def _agree(self, runner: Runner) -> int:
        """Return the code of all ranks; 0 without a signal, or on a GPU if it is not known yet."""
        if self._votes_with is not None:
            return self._votes_with.agreed_stop_code
        device = next(runner.model.parameters()).device
        code = self._all_reduce.reduce(torch.full((1,), self._code(), device=device))
        return 0 if code is None else int(code)

    def _code(self) -> int:
        """Return this rank's code."""
        if _LAUNCHED in os.environ and os.getppid() != self._parent and not self._requested_code:
            self._requested_code = 128 + signal.SIGTERM
            print_log('torchrun, which started this process, is gone', 'current', logging.WARNING)
        return self._requested_code

    def restore_handlers(self) -> None:
        """Restore the signal handlers; call it after an error in training, when no hook runs."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _handle(self, number: int, _: Any) -> None:
        self._requested_code = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def _has_stepped(runner: Runner) -> bool:
    """Return whether this iteration ended with a step of the optimizer."""
    wrapper = runner.optim_wrapper
    return not isinstance(wrapper, OptimWrapper) or wrapper.should_update()


def _ignore_signals(numbers: Sequence[int], init: Callable | None, worker: int) -> None:
    """Initialise a data-loader worker that ignores signals; it ends with its loader or parent."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    if init is not None:
        init(worker)
