"""Losses for the log, read from a GPU without making every step wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.hooks import LoggerHook, RuntimeInfoHook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor

from mldr_kd_mm.registry import HOOKS

_INTERVAL = 50  # steps, without a LoggerHook


# The name replaces mmengine's hook in runs with our default scope.
@HOOKS.register_module(name=['DeferredRuntimeInfoHook', 'RuntimeInfoHook'])
class DeferredRuntimeInfoHook(RuntimeInfoHook):
    """mmengine's RuntimeInfoHook, which reads the losses of a GPU once for each line of the log.

    mmengine's hook reads each loss in each step, and its OptimWrapper the norm of the gradients
    (``clip_grad``), so that the host waits for the GPU. This hook keeps the values of a step on the
    GPU, in one tensor, and copies all of them to the message hub when the LoggerHook is due, before
    a checkpoint and at the end of an epoch. The values are the same; between two logged lines the
    message hub lacks those of the last steps. Values on the CPU are stored at once.
    """

    def before_train(self, runner: Runner) -> None:
        """Let the optimizer keep the norm of its gradients on the GPU."""
        super().before_train(runner)
        self._pending: list[tuple[list[str], Tensor]] = []
        self._norms: dict[str, Tensor] = {}
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        self._interval = min(intervals, default=_INTERVAL)
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        self._clipping = [each for each in wrappers if getattr(each, 'clip_grad_kwargs', None)]
        for each in self._clipping:
            each.clip_func = self._keep_norm(each)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Keep the values of a step; store those of all steps if the log is due."""
        values = dict(outputs or {})
        on_gpu = {name: values.pop(name) for name in [*values] if _is_on_gpu(values[name])}
        super().after_train_iter(runner, batch_idx, data_batch, values)
        on_gpu, self._norms = self._norms | on_gpu, {}
        if on_gpu:
            vector = torch.stack([value.detach().reshape(()) for value in on_gpu.values()])
            self._pending.append(([*on_gpu], vector))
        is_due = self.every_n_inner_iters(batch_idx, self._interval)
        if is_due or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self._store(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the values in the checkpoint as well, which has a copy of the message hub."""
        if self._store(runner):
            state = runner.message_hub.state_dict()
            for name in ('log_scalars', 'resumed_keys'):
                checkpoint['message_hub'][name] = state[name]

    def after_train(self, runner: Runner) -> None:
        """Store the last values and restore the optimizer's clipping."""
        self._store(runner)
        for wrapper in self._clipping:
            wrapper.clip_func = wrapper.clip_func.__wrapped__
        super().after_train(runner)

    def _store(self, runner: Runner) -> bool:
        """Copy all values to the message hub with one read; return whether there were any."""
        pending, self._pending = getattr(self, '_pending', []), []
        if not pending:
            return False
        names = [name for names, _ in pending for name in names]
        values = torch.cat([vector for _, vector in pending]).tolist()
        for name, value in zip(names, values, strict=True):
            runner.message_hub.update_scalar(f'train/{name}', value)
        return True

    def _keep_norm(self, wrapper: OptimWrapper) -> Callable[..., Tensor | None]:
        """Return the wrapper's function that clips gradients, without a norm on a GPU.

        The OptimWrapper reads the norm if there is one.
        """
        clip, name = wrapper.clip_func, wrapper.grad_name

        def clip_and_keep(*args: Any, **kwargs: Any) -> Tensor | None:
            norm = clip(*args, **kwargs)
            if not _is_on_gpu(norm):
                return norm
            self._norms[name] = norm
            return None

        clip_and_keep.__wrapped__ = clip
        return clip_and_keep


def _is_on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda and value.numel() == 1
