"""AdaptiveClipHook limits each unit's gradient to the norm of its weights."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch.testing import assert_close

from mldr_kd_mm.engine.hooks import AdaptiveClipHook
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
