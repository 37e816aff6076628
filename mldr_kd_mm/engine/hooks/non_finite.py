"""Steps whose loss or gradient is not finite: skipped by all processes, counted and reported."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import groupby
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
    """What is kept of a forward pass until all processes agree that its step was good."""

    terms: list[str]
    """The names of the losses."""
    finite: Tensor
    """Whether each is finite (T,), on the device that trains."""
    data_samples: Sequence | None
    """The batch."""

    def wrong(self) -> list[str]:
        """The losses that are not finite; on a GPU the host waits for them."""
        return [t for t, finite in zip(self.terms, self.finite.tolist(), strict=True) if not finite]


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Skips a step whose loss or gradient is not finite, and ends a run that does not recover.

    Such a step changes nothing: no weight, no state of the optimizer, no running statistics of
    BatchNorm. All processes skip it together, also where one of them alone has the loss. The log
    names the losses and the indices of the samples. It works for every model that trains under
    one OptimWrapper. With gradient accumulation an update is skipped as a whole.

    Under a GradScaler the losses alone count: gradients that overflow are its own affair.

    On a GPU an optimizer with ``fused=True`` is told on the device, so that the host waits for
    nothing, and the log has a step two steps later; for others the host waits, as torch's own
    GradScaler does.

    Args:
        max_in_a_row: After so many skipped steps in a row the run ends. They are counted anew in a
            resumed run, unlike all skipped steps, whose number is part of checkpoints.

    Raises:
        ConfigError: If ``max_in_a_row`` is below 1.
    """

    # Before EMAHook averages and CheckpointHook saves.
    priority = 'HIGH'

    def __init__(self, max_in_a_row: int = 10) -> None:
        check_positive(max_in_a_row=max_in_a_row)
        self.max_in_a_row = max_in_a_row

    def __deepcopy__(self, memo: dict) -> NonFiniteHook:
        """A copy of the model has hooks of ours too; they watch the original alone."""
        return self

    def before_train(self, runner: Runner) -> None:
        """Watch the model and its optimizer.

        Raises:
            ConfigError: If the processes take different numbers of steps, in all of them: they
                would wait for each other's gradients and votes for ever.
        """
        self._optimizer: Optimizer | None = None
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            runner.logger.warning('NonFiniteHook does nothing: the run has several optimizers')
            return
        _check_same_steps(runner.max_iters)
        self._model = runner.model
        self._optimizer = runner.optim_wrapper.optimizer
        self._device = next(runner.model.parameters()).device
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        self._scales = scaler is not None and scaler.is_enabled()
        self._statistics = _Statistics(runner.model)
        self._votes = DeferredAllReduce()
        # Of the update that is under way, and of those whose votes are not known.
        self._forwards: list[_Forward] = []
        self._has_voted = False
        self._agreed: Tensor | None = None
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
                'NonFiniteHook: the host waits for the GPU in each step: '
                'optim_wrapper.optimizer.fused=True avoids it, with SGD, Adam and AdamW'
            )

    def after_train(self, runner: Runner) -> None:
        """Report on the last steps, and leave nothing behind on the model and its optimizer.

        Raises:
            ConfigError: If ``max_in_a_row`` steps in a row were skipped; in all processes.
        """
        if self._optimizer is None:
            return
        for handle in self._handles:
            handle.remove()
        vars(self._optimizer).pop('found_inf', None)
        while self._open:
            self._agreed = self._votes.reduce(torch.zeros(2, device=self._device))
            self._settle(runner)

    @torch.compiler.disable
    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._is_training(model, kwargs) and not self._forwards:
            self._statistics.keep()

    @torch.compiler.disable
    def _after_forward(self, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        if not self._is_training(model, kwargs):
            return
        # What mmengine adds up and differentiates.
        values = {name: _mean(value) for name, value in losses.items() if 'loss' in name}
        finite = torch.stack(list(values.values())).isfinite()
        self._forwards.append(_Forward(list(values), finite, kwargs.get('data_samples')))

    def _is_training(self, model: nn.Module, kwargs: dict) -> bool:
        return model is self._model and model.training and kwargs.get('mode') == 'loss'

    @torch.compiler.disable
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        skip = self._vote(None if self._scales else optimizer)
        if self._scales:
            skip = torch.maximum(skip, getattr(optimizer, 'found_inf', skip))
        # torch's fused SGD leaves its momentum uninitialised where the first step is skipped.
        if self._has_stepped and _is_fused(optimizer):
            optimizer.found_inf = skip
        elif skip:
            # What has no gradient is neither decayed nor moved on by its momentum.
            optimizer.zero_grad()
        else:
            self._has_stepped = True

    def _vote(self, optimizer: Optimizer | None = None) -> Tensor:
        """Agree on this step with the other processes.

        Args:
            optimizer: Its gradients count too.

        Returns:
            1.0 if the step is bad, else 0.0, a scalar on the device that trains.
        """
        flags = torch.zeros(2, device=self._device)
        if self._forwards:
            flags[0] = ~torch.cat([forward.finite for forward in self._forwards]).all()
        gradients = _gradients(optimizer) if optimizer else []
        if gradients:
            flags[1] = ~nn.utils.get_total_norm(gradients).isfinite()
        self._agreed = self._votes.reduce(flags)
        self._has_voted = True
        bad = flags.amax()
        self._statistics.put_back(bad)
        return bad

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Report what is known by now.

        Raises:
            ConfigError: If ``max_in_a_row`` steps in a row were skipped; in all processes.
        """
        if self._optimizer is None:
            return
        if not self._has_voted:
            if not runner.optim_wrapper.should_update():
                return
            # A GradScaler that finds an overflow does not call optimizer.step.
            self._vote()
        self._open.append((runner.iter + 1, self._forwards))
        self._forwards, self._has_voted = [], False
        self._settle(runner)

    def _settle(self, runner: Runner) -> None:
        """Report on the step that the last vote told of."""
        if self._agreed is None:
            return
        iteration, forwards = self._open.popleft()
        if self._agreed.any():
            self._report(runner, iteration, forwards)
        else:
            self._in_a_row = 0

    def _report(self, runner: Runner, iteration: int, forwards: list[_Forward]) -> None:
        if self._in_a_row == 0:
            self._last_good = runner.message_hub.get_info('last_ckpt')
        self._in_a_row += 1
        # Checkpoints have what the message hub has.
        total = runner.message_hub.get_info('skipped_steps', 0) + 1
        runner.message_hub.update_info('skipped_steps', total)
        runner.visualizer.add_scalar('skipped_steps', total, step=iteration)
        found = _found_by_all(forwards)
        runner.logger.warning(
            f'Iter(train) [{iteration}]: step skipped, {found}; '
            f'{self._in_a_row} in a row, {total} in all'
        )
        if self._in_a_row >= self.max_in_a_row:
            resume = f'resume from {self._last_good}' if self._last_good else 'start anew'
            raise ConfigError(
                f'NonFiniteHook: max_in_a_row={self.max_in_a_row} steps were skipped up to '
                f'iteration {iteration}, {found}: check these samples, or {resume} with a lower '
                'optim_wrapper.optimizer.lr'
            )


class _Statistics:
    """The running statistics of a model's BatchNorms, kept before a step and put back after it."""

    def __init__(self, model: nn.Module) -> None:
        buffers = [
            buffer.reshape(-1)
            for module in model.modules()
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        # Hundreds of small tensors: as one of each dtype they take a few kernels.
        kinds = groupby(sorted(buffers, key=_kind), key=_kind)
        self._groups = [list(group) for _, group in kinds]
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Copy them."""
        self._kept = [torch.cat(group) for group in self._groups]

    def put_back(self, bad: Tensor) -> None:
        """Write the copies back if ``bad``, a scalar; the host of a GPU does not wait for it."""
        for group, kept in zip(self._groups, self._kept, strict=False):
            values = torch.where(bad > 0, kept, torch.cat(group))
            torch._foreach_copy_(group, values.split([len(buffer) for buffer in group]))


def _check_same_steps(steps: int) -> None:
    everywhere = dist.all_gather_object(steps)
    if len(set(everywhere)) > 1:
        raise ConfigError(
            f'train_dataloader: the processes take {", ".join(map(str, everywhere))} steps: must '
            'be as many each: sampler.round_up=True or drop_last=True'
        )


def _kind(buffer: Tensor) -> str:
    return f'{buffer.device} {buffer.dtype}'


def _mean(value: Tensor | Iterable[Tensor]) -> Tensor:
    """A loss as mmengine adds it up: a tensor, or a list of tensors."""
    if isinstance(value, Tensor):
        return value.detach().mean()
    return torch.stack([_mean(part) for part in value]).sum()


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = (p for group in optimizer.param_groups for p in group['params'])
    return [p.grad for p in parameters if p.grad is not None]


def _is_fused(optimizer: Optimizer) -> bool:
    """Whether it reads ``found_inf`` on its device, as GradScaler sets it."""
    return all(group.get('fused') for group in optimizer.param_groups)


def _found_by_all(forwards: list[_Forward]) -> str:
    """What is not finite, and for which samples, of all processes."""
    wrong = [forward for forward in forwards if forward.wrong()]
    terms = [term for forward in wrong for term in forward.wrong()]
    indices = [index for forward in wrong or forwards for index in _indices(forward.data_samples)]
    everywhere = dist.all_gather_object((terms, indices))
    # Where no loss is wrong, the gradient is, and any of the samples may have made it so.
    guilty = [found for found in everywhere if found[0]] or everywhere
    terms = list(dict.fromkeys(term for terms, _ in guilty for term in terms))
    indices = [str(index) for _, indices in guilty for index in indices]
    return (
        f'not finite: {", ".join(terms) or "the gradient"}; '
        f'samples {", ".join(indices) or "unknown"}'
    )


def _indices(data_samples: Sequence | None) -> list[int]:
    """The places of a batch in the data set, as far as its samples tell."""
    # `sample_idx` counts within a part of a concatenated data set, a view within the whole.
    indices = (
        sample.view.index if 'view' in sample else sample.get('sample_idx')
        for sample in data_samples or ()
    )
    return [index for index in indices if index is not None]
