"""Quantisation-aware training of the last epochs."""

from __future__ import annotations

import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn

from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, check_not_negative
from mldr_kd_mm.utils.logging import plural

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

    The layers of torch's MultiheadAttention, and those whose weight is computed, as by
    ``weight_norm``, are not rounded. A warning counts them.

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
        """Check the run, and round in an interrupted validation, which a resumed run repeats.

        Raises:
            ConfigError: ``begin`` is not 0 in a run that counts iterations, or the student has no
                layer to round.
        """
        self._check(runner)
        if runner.epoch > self.begin:
            self._start(runner)

    def _check(self, runner: Runner) -> None:
        field = f'QuantizationAwareHook: begin={self.begin}'
        if self.begin and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ConfigError(f'{field}: counts epochs; set begin=0, or train_cfg.by_epoch=True')
        if self.begin >= runner.max_epochs:
            runner.logger.warning(
                f'{field}: nothing is rounded, as training ends after epoch {runner.max_epochs}; '
                'lower begin'
            )
        layers, others = find_layers(_student(runner))
        if not layers:
            raise ConfigError(
                'QuantizationAwareHook: the student must have a convolution or linear layer whose '
                'weight is a parameter'
            )
        if others:
            runner.logger.warning(
                f'QuantizationAwareHook: does not round {plural(len(others), "layer")} of the '
                f'student, such as {others[0]}; MultiheadAttention and computed weights, as by '
                'weight_norm, are not supported'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Start to round."""
        if runner.epoch >= self.begin:
            self._start(runner)

    def _start(self, runner: Runner) -> None:
        if self._handles:
            return
        self._handles = add_rounding(_student(runner))
        _recompile()
        runner.logger.info(f'quantisation-aware training from epoch {runner.epoch + 1}')

    def after_train(self, runner: Runner) -> None:
        """Stop rounding."""
        if self._handles:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()
            _recompile()


def _student(runner: Runner) -> nn.Module:
    model = unwrap_model(runner.model)
    return getattr(model, 'student', model)


def _recompile() -> None:
    """Compile models anew, since torch.compile does not notice added or removed hooks."""
    torch.compiler.reset()


def find_layers(model: nn.Module) -> tuple[list[nn.Module], list[str]]:
    """Find the convolutions and linear layers that can be rounded.

    Args:
        model: The model.

    Returns:
        The layers, and the names of those that cannot be rounded: MultiheadAttention uses the
        weights of its layers without calling them, and a computed weight is no parameter.
    """
    modules = dict(model.named_modules())
    attention = [name for name, each in modules.items() if isinstance(each, nn.MultiheadAttention)]
    inside = {layer for name in attention for layer in modules[name].modules()}
    layers, others = [], attention
    for name, layer in modules.items():
        if isinstance(layer, _LAYERS) and layer not in inside:
            if 'weight' in layer._parameters:
                layers.append(layer)
            else:
                others.append(name)
    return layers, others


def add_rounding(model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
    """Round the weights and inputs of the layers that :func:`find_layers` finds to INT8.

    Args:
        model: The model. Its parameters and their names do not change.

    Returns:
        Handles, whose ``remove()`` ends the rounding.
    """
    return [
        handle
        for layer in find_layers(model)[0]
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
