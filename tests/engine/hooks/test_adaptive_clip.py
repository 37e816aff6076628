"""AdaptiveClipHook limits each unit's gradient to the norm of its weights."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import FlexibleRunner
from timm.utils.agc import adaptive_clip_grad
from torch.testing import assert_close

from mldr_kd_mm.engine.hooks import AdaptiveClipHook
from mldr_kd_mm.engine.hooks.adaptive_clip import clip_units
from mldr_kd_mm.utils.errors import ConfigError


def step(weight, gradient, grad_scale=None, **kwargs):
    """Return what one step with a learning rate of 1 subtracts from a weight."""
    parameter = torch.nn.Parameter(torch.tensor(weight))
    optimizer = torch.optim.SGD([parameter], lr=1.0, fused=grad_scale is not None)
    runner = SimpleNamespace(optim_wrapper=OptimWrapper(optimizer))
    hook = AdaptiveClipHook(**kwargs)
    hook.before_train(runner)
    if grad_scale is not None:
        optimizer.grad_scale = torch.tensor(grad_scale)
    before = parameter.detach().clone()
    parameter.grad = torch.tensor(gradient)
    optimizer.step()
    hook.after_train(runner)
    assert not optimizer._optimizer_step_pre_hooks
    return before - parameter.detach()


def test_clips_each_row():
    found = step([[3.0, 4.0], [3.0, 4.0]], [[30.0, 40.0], [0.3, 0.4]])
    assert_close(found, torch.tensor([[3.0, 4.0], [0.3, 0.4]]))


def test_factor_and_floor():
    found = step([[3.0, 4.0], [0.0, 0.0]], [[30.0, 40.0], [6.0, 8.0]], clip_factor=0.5, min_norm=2)
    assert_close(found, torch.tensor([[1.5, 2.0], [0.6, 0.8]]))


def test_clips_a_bias_as_a_whole():
    assert_close(step([3.0, 4.0], [30.0, 40.0]), torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_equals_timm(memory_format):
    """Gradients of each shape, below and above the norm of the weights."""
    torch.manual_seed(0)
    shapes = [(9,), (8, 4, 3, 3), (5, 7), (), (6, 1, 3, 3), (1,), (2, 3, 4)]
    for size in (0.1, 1, 10):
        expected, found = [], []
        for shape in shapes:
            weight, gradient = torch.randn(shape), torch.randn(shape) * size
            layout = memory_format if len(shape) == 4 else torch.preserve_format
            for parameters, kept in ((expected, torch.preserve_format), (found, layout)):
                parameters.append(torch.nn.Parameter(weight.clone(memory_format=kept)))
                parameters[-1].grad = gradient.clone(memory_format=kept)
        adaptive_clip_grad(expected, 0.5, 1.0)
        clip_units(found, 0.5, 1.0)
        for one, other in zip(found, expected, strict=True):
            assert_close(one.grad, other.grad)


def test_a_fused_optimizer_divides_by_the_scale_of_amp_itself():
    found = step([[3.0, 4.0], [3.0, 4.0]], [[240.0, 320.0], [2.4, 3.2]], grad_scale=8.0)
    assert_close(found, torch.tensor([[3.0, 4.0], [0.3, 0.4]]))


def test_a_nan_stays_for_non_finite_hook():
    assert step([[3.0, 4.0]], [[float('nan'), 1.0]]).isnan().any()
    assert step([[3.0, 4.0]], [[float('inf'), 1.0]]).isnan().any()


@pytest.mark.parametrize('arguments', [dict(clip_factor=0), dict(min_norm=-1)])
def test_arguments(arguments):
    with pytest.raises(ConfigError, match='must be a positive number'):
        AdaptiveClipHook(**arguments)


def test_several_optimizers():
    with pytest.raises(ConfigError, match='must have one optimizer'):
        AdaptiveClipHook().before_train(SimpleNamespace(optim_wrapper=OptimWrapperDict()))


def test_sharded_weights():
    with pytest.raises(ConfigError, match='needs whole weights, which a strategy may shard'):
        AdaptiveClipHook().before_train(object.__new__(FlexibleRunner))
