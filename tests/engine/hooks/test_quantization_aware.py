"""Rounding of the last epochs."""

from types import SimpleNamespace

import pytest
import torch
from helpers import mldr, train
from mmengine.hooks import Hook
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm.engine.hooks import QuantizationAwareHook, quantization_aware
from mldr_kd_mm.engine.hooks.quantization_aware import (
    add_rounding,
    round_activation,
    round_weight,
)
from mldr_kd_mm.registry import HOOKS, MODELS
from mldr_kd_mm.utils.errors import ConfigError


def test_values():
    weight = torch.tensor([[6.4, -0.16, 0.14], [0.0, 0.0, 0.0], [1e-3, 2e-3, -2e-3]])
    expected = torch.tensor([[6.4, -0.2, 0.1], [0.0, 0.0, 0.0], [1e-3, 2e-3, -2e-3]])
    assert_close(round_weight(weight), expected)
    activation = torch.tensor([0.0, 2.55, 0.984, -0.0])
    assert_close(round_activation(activation), torch.tensor([0.0, 2.55, 0.98, 0.0]))
    assert_close(round_activation(torch.tensor([3.0, 3.0])), torch.tensor([3.0, 3.0]))
    assert_close(round_activation(torch.zeros(2)), torch.zeros(2))
    assert round_activation(torch.randn(4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ('layer', 'shape'),
    [(nn.Linear(8, 5), (3, 4, 8)), (nn.Conv2d(8, 6, 3, groups=2, padding=1), (2, 8, 5, 5))],
)
def test_layer(layer, shape):
    names, images = list(layer.state_dict()), torch.randn(shape)
    plain = layer(images)
    handles = add_rounding(nn.Sequential(layer))
    rounded = layer(images)
    error = (rounded - plain).abs().max()
    assert 0 < error < 0.1 * plain.abs().max()
    # The parameter itself gets the gradient, as if nothing was rounded.
    rounded.sum().backward()
    assert layer.weight.grad.abs().sum() > 0 and list(layer.state_dict()) == names
    with pytest.raises(RuntimeError):
        layer(torch.randn(1, 1))
    assert isinstance(layer.weight, nn.Parameter)
    for handle in handles:
        handle.remove()
    assert_close(layer(images), plain, rtol=0, atol=0)


def rounded_layers(model):
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return sum(hook is quantization_aware._round_layer for hook in hooks)


@HOOKS.register_module()
class CountsRounded(Hook):
    """Counts the layers that are rounded in each epoch."""

    counts = []

    def after_train_epoch(self, runner):
        sides = (runner.model.student, runner.model.teacher.model, runner.model.neck)
        CountsRounded.counts.append([rounded_layers(side) for side in sides])


def test_begins_and_ends_in_a_run(tmp_path):
    hooks = [dict(type='CountsRounded'), dict(type='QuantizationAwareHook', begin=1)]
    runner = train(mldr(), tmp_path, max_epochs=2, custom_hooks=hooks)
    layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in runner.model.student.modules())
    before, after = CountsRounded.counts
    assert before == [0, 0, 0] and after == [layers, 0, 0]
    assert rounded_layers(runner.model) == 0
    assert len(runner.message_hub.get_scalar('val/accuracy/top1').data[0]) == 2


@pytest.mark.parametrize(('epoch', 'is_rounded'), [(1, False), (2, True)])
def test_an_interrupted_validation_is_repeated_as_it_was(epoch, is_rounded):
    """It is repeated before a resumed run trains; that of epoch 1 was not rounded."""
    hook, model = QuantizationAwareHook(begin=1), MODELS.build(mldr())
    logger = SimpleNamespace(info=lambda text: None)
    hook.before_train(SimpleNamespace(model=model, epoch=epoch, logger=logger))
    assert (rounded_layers(model.student) > 0) is is_rounded


def test_bad_argument():
    with pytest.raises(ConfigError, match='^begin=-1: must be'):
        QuantizationAwareHook(begin=-1)
