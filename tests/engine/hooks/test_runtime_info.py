"""Losses that stay on the GPU between two lines of the log."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import NORMALIZATION, resnet, runner_config
from mmengine.config import Config
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.runner import Runner

from mldr_kd_mm.engine.hooks import DeferredRuntimeInfoHook, runtime_info
from mldr_kd_mm.utils.checkpoint import load_checkpoint

NAMES = ('train/loss', 'train/grad_norm', 'train/lr')


class Watch(Hook):
    """Records how many losses the message hub has after each step."""

    priority = 'LOWEST'

    def __init__(self):
        self.known = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        found = runner.message_hub.log_scalars.get('train/loss')
        self.known.append(0 if found is None else len(found.data[0]))


def train(work_dir, **hooks):
    model = resnet(data_preprocessor=dict(NORMALIZATION))
    wrapper = dict(optimizer=dict(type='SGD', lr=0.01), clip_grad=dict(max_norm=1.0))
    hooks = dict(
        logger=dict(type='LoggerHook', interval=3),
        checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=2),
        **hooks,
    )
    config = runner_config(model, work_dir, default_hooks=hooks, optim_wrapper=wrapper)
    runner = Runner.from_cfg(Config(copy.deepcopy(config)))
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    assert runner.optim_wrapper.clip_func is torch.nn.utils.clip_grad_norm_
    return runner, watch.known


def history(hub):
    return {name: hub[name].data[0].tolist() for name in NAMES}


@pytest.fixture(scope='module')
def theirs(tmp_path_factory):
    hook = dict(type='mmengine.RuntimeInfoHook')
    runner, known = train(tmp_path_factory.mktemp('theirs'), runtime_info=hook)
    assert any(type(hook) is RuntimeInfoHook for hook in runner.hooks)
    assert known == [1, 2, 3, 4]
    return history(runner.message_hub.log_scalars)


@pytest.fixture
def on_gpu(monkeypatch):
    """Treat each tensor as one of a GPU."""
    monkeypatch.setattr(runtime_info, '_is_on_gpu', lambda value: isinstance(value, torch.Tensor))


def test_on_the_cpu_it_is_mmengines(tmp_path, theirs):
    runner, known = train(tmp_path)
    assert any(type(hook) is DeferredRuntimeInfoHook for hook in runner.hooks)
    assert known == [1, 2, 3, 4]
    assert history(runner.message_hub.log_scalars) == theirs


def test_values_of_a_gpu_are_read_together(tmp_path, theirs, on_gpu):
    runner, known = train(tmp_path)
    # A checkpoint is saved after two steps, a line is logged after three, an epoch has four.
    assert known == [0, 2, 3, 4]
    assert history(runner.message_hub.log_scalars) == theirs


def test_a_checkpoint_has_all_values(tmp_path, theirs, on_gpu):
    train(tmp_path)
    saved = load_checkpoint(str(tmp_path / 'iter_2.pth'))['message_hub']['log_scalars']
    assert history(saved) == {name: values[:2] for name, values in theirs.items()}
