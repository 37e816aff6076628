"""Quantisation-aware training of the last epochs."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.errors import check_not_negative

LEVELS = 64
"""Largest value of a quantised weight, which has 7 bits, as in an exported INT8 file."""

# Of torchao, the pt2e flow captures the student as a graph without the stages that losses read, and
# the eager API has no convolutions. The operators of torch itself need neither.
_LAYERS = (nn.Conv2d, nn.Linear)


@HOOKS.register_module()
class QuantizationAwareHook(Hook):
    """Round the student's weights and activations in the last epochs as its INT8 file does.

    The student of a Distiller, or a classifier without a teacher, then learns weights that keep
    their accuracy in INT8, under the same losses and the same teacher. Weights are rounded for each
    output channel, and the input of each convolution and linear layer to 256 levels between its
    extremes in the batch; gradients pass unchanged. From then on, validation measures the rounded
    student. The hook has no state, and checkpoints contain the weights before rounding:
    ``mldr-kd export --int8`` quantises them.

    Source: arXiv 1712.05877, section 3, with one range for each batch instead of moving averages.

    Args:
        begin: Number of epochs to train before the rounding starts.

    Raises:
        ConfigError: ``begin`` is negative.
    """

    def __init__(self, begin: int) -> None:
        check_not_negative(begin=begin)
        self.begin = begin
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def before_train(self, runner: Runner) -> None:
        """Round in an interrupted validation, which a resumed run repeats before it trains."""
        if runner.epoch > self.begin:
            self._start(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Start to round."""
        if runner.epoch >= self.begin:
            self._start(runner)

    def _start(self, runner: Runner) -> None:
        if self._handles:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._handles = add_rounding(getattr(model, 'student', model))
        runner.logger.info(f'quantisation-aware training from epoch {runner.epoch + 1}')

    def after_train(self, runner: Runner) -> None:
        """Stop rounding."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def add_rounding(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Round the weights and inputs of all convolutions and linear layers to INT8.

    Args:
        model: The model. Its parameters and their names do not change.

    Returns:
        Handles, whose ``remove()`` ends the rounding.
    """
    return [
        handle
        for layer in model.modules()
        if isinstance(layer, _LAYERS)
        for handle in (
            layer.register_forward_pre_hook(_round_layer),
            layer.register_forward_hook(_restore_layer, always_call=True),
        )
    ]


def round_weight(weight: Tensor) -> Tensor:
    """Round a weight (out channels, …) symmetrically, with one scale for each output channel."""
    with torch.no_grad():
        largest = weight.detach().flatten(1).abs().amax(1).float()
        scale = (largest / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -LEVELS, LEVELS)


def round_activation(values: Tensor) -> Tensor:
    """Round a tensor to 256 levels between its extremes, of which 0 is one."""
    with torch.no_grad():
        low, high = (extreme.float() for extreme in values.detach().aminmax())
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = ((high - low) / 255).clamp_min(torch.finfo(torch.float32).tiny)
        zero = (-low / scale).round().to(torch.int32)
    rounded = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, 255)
    return rounded.to(values.dtype)


def _round_layer(layer: nn.Module, inputs: tuple) -> tuple:
    # The attribute hides the parameter of that name during the layer's forward.
    layer.__dict__['weight'] = round_weight(layer._parameters['weight'])
    return (round_activation(inputs[0]), *inputs[1:])


def _restore_layer(layer: nn.Module, *_: object) -> None:
    layer.__dict__.pop('weight', None)
