"""Skip training steps with NaN or infinite losses, gradients or BatchNorm statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import is_
from typing import Any, NamedTuple

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import DeferredAllReduce
from mldr_kd_mm.utils.errors import ConfigError, check_positive


class _Forward(NamedTuple):
    """Data of a forward pass, kept until all ranks agree that its step was finite.

    Attributes:
        terms: Names of the losses.
        values: The losses (T,) on the training device.
        data_samples: The batch.
    """

    terms: list[str]
    values: Tensor
    data_samples: Sequence | None

    def non_finite_terms(self) -> list[str]:
        """Return the losses that are not finite; on a GPU this waits for the device."""
        finite = self.values.isfinite().tolist()
        return [term for term, is_finite in zip(self.terms, finite, strict=True) if not is_finite]


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Skips non-finite steps and ends a run that does not recover.

    A step is not finite if a loss, a gradient, or BatchNorm's running statistics after it have a
    NaN or an infinite value. A skipped step changes no weight, no optimizer state and no BatchNorm
    statistics. All ranks skip it together, even if only one has the non-finite loss. The log names
    the losses and the indices of the samples. The hook works with every model that trains under one
    OptimWrapper. With gradient accumulation a whole update is skipped.

    Under a GradScaler gradients are not checked, since the scaler handles those that overflow.

    On a GPU, an optimizer with ``fused=True`` skips the step on the device: the host does not wait,
    and the log reports the step two steps later. With other optimizers the host waits, as with
    torch's GradScaler.

    The ranks agree through one all-reduce per step, which a :class:`StopSignalHook` shares.

    Args:
        max_in_a_row: Number of consecutive skipped steps after which the run ends. Resuming resets
            this count, but not the total number of skipped steps, which checkpoints contain.

    Raises:
        ConfigError: ``max_in_a_row`` is below 1.
    """

    # Runs before EMAHook averages and CheckpointHook saves.
    priority = 'HIGH'

    def __init__(self, max_in_a_row: int = 10) -> None:
        check_positive(max_in_a_row=max_in_a_row)
        self.max_in_a_row = max_in_a_row
        self._optimizer: Optimizer | None = None
        self._stop_code: Callable[[], int] = lambda: 0
        self._agreed: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> NonFiniteHook:
        """Return the hook itself: a copied model has its forward hooks, which must do nothing."""
        return self

    def before_train(self, runner: Runner) -> None:
        """Register hooks on the model and its optimizer.

        Raises:
            ConfigError: The ranks take different numbers of steps and would wait for each other
                forever. Raised on all ranks.
        """
        self._optimizer = None
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            runner.logger.warning('NonFiniteHook does nothing: the run has several optimizers')
            return
        _check_same_steps(runner.max_iters)
        self._model = runner.model
        self._optimizer = runner.optim_wrapper.optimizer
        self._device = next(runner.model.parameters()).device
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        self._scales = scaler is not None and scaler.is_enabled()
        self._statistics = _BatchNormStatistics(runner.model)
        self._all_reduce = DeferredAllReduce()
        # Forward passes of the current update, and of the updates without a reduced result.
        self._forwards: list[_Forward] = []
        self._has_agreed = False
        self._agreed = None
        self._open: deque[tuple[int, list[_Forward]]] = deque()
        self._has_stepped = False
        self._in_a_row = 0
        self._last_good: str | None = None
        self._handles = [
            runner.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            runner.model.register_forward_hook(self._after_forward, with_kwargs=True),
            self._optimizer.register_step_pre_hook(self._before_step),
        ]
        if self._device.type != 'cpu' and not _is_fused(self._optimizer):
            runner.logger.warning(
                'NonFiniteHook: the host waits for the GPU in each step; set '
                'optim_wrapper.optimizer.fused=True to avoid it (SGD, Adam, AdamW)'
            )

    def after_train(self, runner: Runner) -> None:
        """Report the last steps and remove the hooks from the model and its optimizer.

        Raises:
            ConfigError: ``max_in_a_row`` consecutive steps were skipped. Raised on all ranks.
        """
        if self._optimizer is None:
            return
        for handle in self._handles:
            handle.remove()
        vars(self._optimizer).pop('found_inf', None)
        while self._open:
            self._agreed = self._all_reduce.reduce(torch.zeros(4, device=self._device))
            self._report_known(runner)

    def share_all_reduce(self, stop_code: Callable[[], int]) -> bool:
        """Let a StopSignalHook share this hook's all-reduce.

        Call it before the first step, after :meth:`before_train`.

        Args:
            stop_code: Returns this rank's code, 0 without a signal.

        Returns:
            Whether that is possible. With several optimizers it is not.
        """
        self._stop_code = stop_code
        return self._optimizer is not None

    @property
    def agreed_stop_code(self) -> int:
        """The largest code of all ranks, as of the last step whose flags are known."""
        return 0 if self._agreed is None else int(self._agreed[3])

    @torch.compiler.disable
    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._is_training(model, kwargs) and not self._forwards:
            self._statistics.keep()

    @torch.compiler.disable
    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        if not self._is_training(model, kwargs):
            return
        # The values that mmengine adds up and differentiates.
        values = {name: _mean(value) for name, value in losses.items() if 'loss' in name}
        stacked = torch.stack(list(values.values()))
        self._forwards.append(_Forward(list(values), stacked, kwargs.get('data_samples')))

    def _is_training(self, model: nn.Module, kwargs: dict) -> bool:
        return model is self._model and model.training and kwargs.get('mode') == 'loss'

    @torch.compiler.disable
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        skip = self._agree(None if self._scales else optimizer)
        if self._scales:
            skip = torch.maximum(skip, getattr(optimizer, 'found_inf', skip))
        # torch's fused SGD leaves its momentum uninitialised if the first step is skipped.
        if self._has_stepped and _is_fused(optimizer):
            optimizer.found_inf = skip
        elif skip:
            # Without a gradient, a parameter gets neither weight decay nor momentum.
            optimizer.zero_grad()
        else:
            self._has_stepped = True

    def _agree(self, optimizer: Optimizer | None = None) -> Tensor:
        """Agree with the other ranks whether to skip this step.

        Args:
            optimizer: Optimizer whose gradients are checked as well.

        Returns:
            1.0 to skip the step, else 0.0, a scalar on the training device.
        """
        gradients = _gradients(optimizer) if optimizer else []
        sizes = (
            _largest([forward.values for forward in self._forwards]),
            nn.utils.get_total_norm(gradients) if gradients else None,
            _largest(self._statistics.read()),
        )
        sizes = [
            torch.zeros((), device=self._device) if size is None else size.to(self._device)
            for size in sizes
        ]
        # Times 0, any value that is not finite becomes NaN.
        flags = torch.full((4,), float(self._stop_code()), device=self._device)
        flags[:3] = (torch.stack(sizes) * 0).nan_to_num(nan=1.0)
        self._agreed = self._all_reduce.reduce(flags)
        self._has_agreed = True
        skip = flags[:3].amax()
        self._statistics.restore_if(skip)
        return skip

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Report the steps whose result is known.

        Raises:
            ConfigError: ``max_in_a_row`` consecutive steps were skipped. Raised on all ranks.
        """
        if self._optimizer is None:
            return
        if not self._has_agreed:
            if not runner.optim_wrapper.should_update():
                return
            # A GradScaler that finds an overflow does not call optimizer.step.
            self._agree()
        self._open.append((runner.iter + 1, self._forwards))
        self._forwards, self._has_agreed = [], False
        self._report_known(runner)

    def _report_known(self, runner: Runner) -> None:
        """Report the step that the last reduced flags belong to."""
        if self._agreed is None:
            return
        iteration, forwards = self._open.popleft()
        if self._agreed[:3].any():
            self._report(runner, iteration, forwards)
        else:
            self._in_a_row = 0

    def _report(self, runner: Runner, iteration: int, forwards: list[_Forward]) -> None:
        if self._in_a_row == 0:
            self._last_good = runner.message_hub.get_info('last_ckpt')
        self._in_a_row += 1
        # The message hub is part of checkpoints.
        total = runner.message_hub.get_info('skipped_steps', 0) + 1
        runner.message_hub.update_info('skipped_steps', total)
        runner.visualizer.add_scalar('skipped_steps', total, step=iteration)
        found = _describe_causes(forwards, statistics=bool(self._agreed[2]))
        runner.logger.warning(
            f'Iter(train) [{iteration}]: step skipped, {found}; '
            f'{self._in_a_row} in a row, {total} in all'
        )
        if self._in_a_row >= self.max_in_a_row:
            resume = f'resume from {self._last_good}' if self._last_good else 'start again'
            groups = self._optimizer.param_groups
            peak = max(group.get('initial_lr', group['lr']) for group in groups)
            raise ConfigError(
                f'NonFiniteHook: max_in_a_row={self.max_in_a_row} steps were skipped up to '
                f'iteration {iteration}, {found}; if the losses grew before, {resume} with a lower '
                f'learning rate, --lr {peak / 3:.2g}, and if that fails with --clip-grad 5; '
                'otherwise check these samples'
            )


class _BatchNormStatistics:
    """Copy of a model's BatchNorm statistics, taken before a step and restored if it is skipped."""

    def __init__(self, model: nn.Module) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        self._buffers: list[Tensor] = []
        self._groups: list[list[Tensor]] = []
        self._kept: list[Tensor] = []
        self._now: list[Tensor] = []

    def keep(self) -> None:
        """Copy the statistics before a step."""
        buffers = [buffer for norm in self._norms for buffer in norm.buffers(recurse=False)]
        # mmpretrain's PreciseBNHook replaces them.
        if len(buffers) != len(self._buffers) or not all(map(is_, buffers, self._buffers)):
            self._buffers = buffers
            # Concatenating hundreds of small tensors by dtype takes only a few kernels.
            kinds = groupby(sorted((b.reshape(-1) for b in buffers), key=_kind), key=_kind)
            self._groups = [list(group) for _, group in kinds]
        self._kept = [torch.cat(group) for group in self._groups]

    def read(self) -> list[Tensor]:
        """Return the statistics after a step, one tensor (N,) for each device and float dtype."""
        self._now = [torch.cat(group) for group in self._groups]
        return [values for values in self._now if values.is_floating_point()]

    def restore_if(self, skip: Tensor) -> None:
        """Restore the copy if ``skip``, a scalar, is not 0, without waiting for a GPU."""
        is_skipped = skip > 0
        for group, kept, now in zip(self._groups, self._kept, self._now, strict=False):
            values = torch.where(is_skipped, kept, now)
            torch._foreach_copy_(group, values.split([len(buffer) for buffer in group]))


def _check_same_steps(steps: int) -> None:
    everywhere = dist.all_gather_object(steps)
    if len(set(everywhere)) > 1:
        raise ConfigError(
            f'train_dataloader: the processes take {", ".join(map(str, everywhere))} steps, which '
            'must be equal; set sampler.round_up=True or drop_last=True'
        )


def _kind(buffer: Tensor) -> str:
    return f'{buffer.device} {buffer.dtype}'


def _mean(value: Tensor | Iterable[Tensor]) -> Tensor:
    """Reduce a loss, a tensor or a list of tensors, as mmengine does."""
    if isinstance(value, Tensor):
        return value.detach().mean() if value.dim() else value.detach()
    return torch.stack([_mean(part) for part in value]).sum()


def _largest(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the largest absolute value, NaN if there is one; None without a tensor."""
    largest = [torch.linalg.vector_norm(tensor, torch.inf) for tensor in tensors]
    return torch.stack(largest).amax() if len(largest) > 1 else next(iter(largest), None)


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group['params'])
    return [p.grad for p in parameters if p.grad is not None]


def _is_fused(optimizer: Optimizer) -> bool:
    """Return whether the optimizer reads ``found_inf`` on its device, as GradScaler sets it."""
    return all(group.get('fused') for group in optimizer.param_groups)


def _describe_causes(forwards: list[_Forward], statistics: bool) -> str:
    """Describe what is not finite and for which samples, on all ranks.

    Args:
        forwards: This rank's forward passes of the step.
        statistics: Whether BatchNorm statistics of any rank are not finite.
    """
    bad = [forward for forward in forwards if forward.non_finite_terms()]
    terms = [term for forward in bad for term in forward.non_finite_terms()]
    indices = [index for forward in bad or forwards for index in _indices(forward.data_samples)]
    everywhere = dist.all_gather_object((terms, indices))
    # If all losses are finite, any of the samples may be the cause.
    causes = [found for found in everywhere if found[0]] or everywhere
    terms = list(dict.fromkeys(term for terms, _ in causes for term in terms))
    indices = [str(index) for _, indices in causes for index in indices]
    other = 'BatchNorm statistics' if statistics else 'the gradient'
    return f'not finite: {", ".join(terms) or other}; samples {", ".join(indices) or "unknown"}'


def _indices(data_samples: Sequence | None) -> list[int]:
    """Return the known indices of a batch in the data set."""
    # In a concatenated data set, `sample_idx` counts within a part and a view within the whole.
    indices = (
        sample.view.index if 'view' in sample else sample.get('sample_idx')
        for sample in data_samples or ()
    )
    return [index for index in indices if index is not None]
