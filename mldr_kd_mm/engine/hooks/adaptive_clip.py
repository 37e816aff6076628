"""Clip gradients relative to the weights that they change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import FlexibleRunner, Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.errors import ConfigError, check_above_zero


@HOOKS.register_module()
class AdaptiveClipHook(Hook):
    """Clip each unit's gradient to the norm of its weights (adaptive gradient clipping, AGC).

    A unit is a row of a weight, or a whole bias. Logits of a head without normalisation can then no
    longer grow by a factor per step. Unlike a limit for the norm of all gradients, one layer with a
    large gradient does not slow down the others.

    Source: arXiv 2102.06171, which uses a factor of 0.01 and a floor of 0.001 for networks without
    BatchNorm. The defaults here only stop a divergence and let weights that start at zero learn.

    Args:
        clip_factor: Largest ratio of the norms of gradient and weights; above 0.
        min_norm: Floor for the norm of the weights; above 0.

    Raises:
        ConfigError: If an argument is out of range, or if the run has several optimizers or a
            strategy, which may shard the weights.
    """

    def __init__(self, clip_factor: float = 1.0, min_norm: float = 1.0) -> None:
        check_above_zero(clip_factor=clip_factor, min_norm=min_norm)
        self.clip_factor = clip_factor
        self.min_norm = min_norm

    def before_train(self, runner: Runner) -> None:
        """Clip the gradients before each step of the optimizer."""
        if isinstance(runner, FlexibleRunner):
            raise ConfigError(
                'custom_hooks: AdaptiveClipHook needs whole weights, which a strategy may shard; '
                'must be without it'
            )
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ConfigError('AdaptiveClipHook: must have one optimizer, the run has several')
        optimizer = runner.optim_wrapper.optimizer
        self._handle = optimizer.register_step_pre_hook(self._clip)

    def after_train(self, runner: Runner) -> None:
        """Stop clipping."""
        self._handle.remove()

    def _clip(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        # A fused optimizer divides the gradients by a GradScaler's factor only in its step.
        scale = getattr(optimizer, 'grad_scale', None)
        factor = self.clip_factor if scale is None else self.clip_factor * scale
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        clip_units([p for p in parameters if p.grad is not None], factor, self.min_norm)


@torch.no_grad()
def clip_units(parameters: Sequence[nn.Parameter], factor: float | Tensor, min_norm: float) -> None:
    """Scale the gradient of each unit down to a multiple of the norm of its weights, in place.

    It has the values of timm's ``adaptive_clip_grad`` in a sixth of the kernel launches.

    Args:
        parameters: Weights with gradients.
        factor: Largest ratio of the norms.
        min_norm: Floor for the norm of the weights.
    """
    if not parameters:
        return
    parameters = sorted(parameters, key=lambda parameter: parameter.ndim < 2)
    limits = _unit_norms(parameters).clamp(min=min_norm) * factor
    scales = (limits / _unit_norms([p.grad for p in parameters])).clamp(max=1)
    sizes = [len(p) if p.ndim > 1 else 1 for p in parameters]
    for parameter, scale in zip(parameters, scales.split(sizes), strict=True):
        shape = [-1, *[1] * (parameter.ndim - 1)][: parameter.ndim]
        parameter.grad.mul_(scale.view(shape))


def _unit_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of each row of the weights, and then of each whole bias."""
    weights = [tensor for tensor in tensors if tensor.ndim > 1]
    norms = [torch.linalg.vector_norm(each, dim=tuple(range(1, each.ndim))) for each in weights]
    if biases := [tensor for tensor in tensors if tensor.ndim < 2]:
        norms.append(torch.stack(torch._foreach_norm(biases)))
    return torch.cat(norms)
