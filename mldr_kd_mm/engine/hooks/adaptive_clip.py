"""Clip gradients relative to the weights that they change."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch.optim import Optimizer

from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.errors import ConfigError, check_above_zero


@HOOKS.register_module()
class AdaptiveClipHook(Hook):
    """Clip each unit's gradient to the norm of its weights (adaptive gradient clipping, AGC).

    A unit is a row of a weight, or a whole bias. Logits of a head without normalisation can then no
    longer grow by a factor per step. Unlike a limit for the norm of all gradients, one layer with a
    large gradient does not slow down the others.

    Source: arXiv 2102.06171, in timm's implementation. The paper uses a factor of 0.01 and a floor
    of 0.001 for networks without BatchNorm. The defaults here only stop a divergence and let
    weights that start at zero learn.

    Args:
        clip_factor: Largest ratio of the norms of gradient and weights; above 0.
        min_norm: Floor for the norm of the weights; above 0.

    Raises:
        ConfigError: If an argument is out of range, or the run has several optimizers.
    """

    def __init__(self, clip_factor: float = 1.0, min_norm: float = 1.0) -> None:
        check_above_zero(clip_factor=clip_factor, min_norm=min_norm)
        self.clip_factor = clip_factor
        self.min_norm = min_norm

    def before_train(self, runner: Runner) -> None:
        """Clip the gradients before each step of the optimizer."""
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ConfigError('AdaptiveClipHook: must have one optimizer, the run has several')
        optimizer = runner.optim_wrapper.optimizer
        self._handle = optimizer.register_step_pre_hook(self._clip)

    def after_train(self, runner: Runner) -> None:
        """Stop clipping."""
        self._handle.remove()

    def _clip(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        from timm.utils.agc import adaptive_clip_grad

        # A fused optimizer divides the gradients by a GradScaler's factor only in its step.
        scale = getattr(optimizer, 'grad_scale', None)
        factor = self.clip_factor if scale is None else self.clip_factor * scale
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        adaptive_clip_grad(parameters, factor, self.min_norm)
