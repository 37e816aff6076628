"""Rounding of the last epochs."""

from types import SimpleNamespace

import pytest
import torch
from helpers import mldr, train
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

from mldr_kd_mm.engine.hooks import QuantizationAwareHook, quantization_aware
from mldr_kd_mm.engine.hooks.quantization_aware import (
    add_rounding,
    find_layers,
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


def run_of(model, loop=EpochBasedTrainLoop, epoch=0, max_epochs=3):
    """Return what the hook reads of a run, with the list of its warnings."""
    warnings = []
    return SimpleNamespace(
        model=model,
        epoch=epoch,
        max_epochs=max_epochs,
        train_loop=object.__new__(loop),
        logger=SimpleNamespace(info=lambda text: None, warning=warnings.append),
        warnings=warnings,
    )


def started(model, begin=1, **kwargs):
    """Call the hook as a run does before it trains; return its warnings."""
    runner = run_of(model, **kwargs)
    QuantizationAwareHook(begin).before_train(runner)
    return runner.warnings


@pytest.mark.parametrize('part', ['module', 'method'])
def test_a_compiled_model(part):
    """A Distiller compiles modules, mmengine's Runner a method of the model."""
    model, images = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(2, 3, 5, 5)
    plain = model(images)
    handles = add_rounding(model)
    rounded = model(images)
    for handle in handles:
        handle.remove()
    if part == 'module':
        model.compile(backend='eager')
    run = model if part == 'module' else torch.compile(model.forward, backend='eager')
    hook = QuantizationAwareHook(begin=1)
    assert_close(run(images), plain, rtol=0, atol=0)
    hook.before_train_epoch(run_of(model, epoch=1))
    assert_close(run(images), rounded, rtol=0, atol=0)
    assert not rounded.equal(plain)
    hook.after_train(run_of(model))
    assert_close(run(images), plain, rtol=0, atol=0)


@pytest.mark.parametrize(('epoch', 'is_rounded'), [(1, False), (2, True)])
def test_an_interrupted_validation_is_repeated_as_it_was(epoch, is_rounded):
    """It is repeated before a resumed run trains; that of epoch 1 was not rounded."""
    model = MODELS.build(mldr())
    assert started(model, epoch=epoch) == []
    assert (rounded_layers(model.student) > 0) is is_rounded


def test_a_run_that_never_starts_to_round():
    with pytest.raises(ConfigError, match='begin=1: counts epochs; set begin=0, or train_cfg.by_'):
        started(nn.Linear(2, 2), loop=IterBasedTrainLoop, max_epochs=1)
    assert started(nn.Linear(2, 2), 0, loop=IterBasedTrainLoop, max_epochs=1) == []
    (warning,) = started(nn.Linear(2, 2), begin=3)
    assert 'begin=3: nothing is rounded, as training ends after epoch 3; lower begin' in warning


class TestLayersThatAreNotRounded:
    """Attention that does not call its layers, and weights that are computed."""

    @pytest.fixture
    def model(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.Sequential(
            layer, weight_norm(nn.Linear(8, 8)), nn.utils.weight_norm(nn.Linear(8, 3))
        )

    def test_are_found(self, model):
        layers, others = find_layers(model)
        assert layers == [model[0].linear1, model[0].linear2]
        assert others == ['0.self_attn', '1', '2']

    def test_run_as_they_are(self, model):
        handles = add_rounding(model)
        model(torch.randn(2, 4, 8)).sum().backward()
        assert len(handles) == 2 * 2 and rounded_layers(model) == 2

    def test_are_a_warning(self, model):
        (warning,) = started(model)
        assert 'does not round 3 layers of the student, such as 0.self_attn; Multi' in warning
        with pytest.raises(ConfigError, match='must have a convolution or linear layer whose wei'):
            started(model[1])


def test_bad_argument():
    with pytest.raises(ConfigError, match='^begin=-1: must be'):
        QuantizationAwareHook(begin=-1)
