"""Runs on labelled and unlabelled images: cache, resume, processes and checks."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from helpers import NORMALIZATION, image_folder, mldr, resnet, run_ranks, runner_config
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.registry import MODELS

WORKER = Path(__file__).parent / 'hooks/teacher_cache_worker.py'
MIXING = dict(augments=[dict(type='Mixup', alpha=0.8)])
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='PackInputs'),
]
STEPS = 4  # of an epoch


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Return 12 labelled images, and 12 others."""
    init_default_scope('mldr_kd_mm')
    root = tmp_path_factory.mktemp('images')
    image_folder(root / 'labelled', {'train': 4, 'val': 1})
    image_folder(root / 'others', {'': 4})
    return root


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    model = MODELS.build(resnet(num_classes=3, data_preprocessor=dict(NORMALIZATION)))
    model.init_weights()
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(model.state_dict(), path)
    return str(path)


def configure(work_dir, images, teacher, cache=None, losses=('KDLoss',), **kwargs):
    """Return the config of a run of three epochs with two views; half of each batch has labels."""
    model = mldr(
        teacher=resnet(num_classes=3),
        student=resnet(num_classes=3, train_cfg=MIXING),
        teacher_checkpoint=teacher,
        losses=[dict(loss=dict(type=kind), name=kind) for kind in losses],
        neck=None,
        data_preprocessor=dict(NORMALIZATION, num_classes=3),
    )
    hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1),
        data_check=dict(type='DataCheckHook'),
        exact_resume=dict(type='ExactResumeHook'),
        teacher_cache=dict(type='TeacherCacheHook', dir=cache and str(cache)),
    )
    off = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)
    kwargs = dict(max_epochs=3) | kwargs
    config = runner_config(model, work_dir, default_hooks=hooks, **off, **kwargs)
    folders = dict(
        labeled=dict(type='ImageFolder', data_root=str(images / 'labelled'), pipeline=PIPELINE),
        unlabeled=dict(type='UnlabeledFolder', data_root=str(images / 'others'), pipeline=PIPELINE),
    )
    config['train_dataloader'].update(
        dataset=dict(type='MixedDataset', **folders),
        sampler=dict(type='MixedSampler', views=2, unlabeled_ratio=0.5),
        batch_size=6,
    )
    return copy.deepcopy(config)


class _Stopped(Exception):
    pass


class _Stop(Hook):
    """Ends the run after a step, once its checkpoint is there."""

    priority = 'LOWEST'

    def __init__(self, step):
        self.step = step

    def after_train_iter(self, runner, *args, **kwargs):
        if runner.iter + 1 == self.step:
            raise _Stopped


def train(config, stop_after=None):
    """Return a run's weights, and how often its teacher ran."""
    runner = Runner.from_cfg(Config(config))
    calls = []
    runner.model.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    if stop_after is None:
        runner.train()
        return runner.model.state_dict(), len(calls)
    runner.register_hook(_Stop(stop_after))
    with pytest.raises(_Stopped):
        runner.train()
    return None


@pytest.fixture(scope='module')
def plain(images, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp('plain')
    return *train(configure(folder / 'run', images, teacher)), folder


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_the_log_has_both_losses(plain):
    (log,) = plain[-1].glob('run/*/vis_data/scalars.json')
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) == 3 * STEPS
    assert all(0 < record['loss_student'] < record['loss'] for record in records)


def test_cache_and_exact_resume(plain, images, teacher, tmp_path, monkeypatch):
    """A run that is stopped in its second epoch while it records ends with the same weights."""
    # With torch's default of weights_only=True the original mmengine cannot read its checkpoints.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    weights, calls, _ = plain
    assert calls == 3 * STEPS
    cache = tmp_path / 'cache'
    train(configure(tmp_path / 'first', images, teacher, cache), stop_after=6)
    resume = dict(resume=True, load_from=str(tmp_path / 'first/iter_6.pth'))
    resumed, calls = train(configure(tmp_path / 'second', images, teacher, cache, **resume))
    assert_same(resumed, weights)
    assert calls == 1 + 2 * STEPS - 6  # the last epoch, and what was recorded, is read


def test_two_processes(images, teacher, tmp_path):
    """They end with the same weights, and record what a second epoch reads."""
    config = configure(tmp_path / 'run', images, teacher, tmp_path / 'cache')
    config['train_dataloader']['batch_size'] = 3
    config['train_dataloader']['sampler']['views'] = 1
    config['train_cfg']['max_epochs'] = 2
    (tmp_path / 'config.json').write_text(json.dumps(config))
    run_ranks(*((WORKER, rank, 2, tmp_path, 0) for rank in range(2)))
    found = [torch.load(tmp_path / f'found{rank}.pt') for rank in range(2)]
    assert [each['calls'] for each in found] == [1 + STEPS] * 2
    # Each process has its own running statistics.
    for name, value in found[0]['weights'].items():
        assert 'running' in name or torch.equal(value, found[1]['weights'][name]), name


class TestPreflight:
    FIELDS = ('model', 'train_cfg', 'optim_wrapper', 'train_dataloader')

    def check(self, config):
        preflight(Config(copy.deepcopy(config)), *self.FIELDS)

    def test_passes(self, images, teacher, tmp_path):
        config = configure(tmp_path / 'run', images, teacher)
        self.check(config)
        config['train_dataloader'].update(
            dataset=config['train_dataloader']['dataset']['unlabeled'],
            sampler=dict(type='ViewSampler'),
        )
        self.check(config)

    def test_a_loss_that_needs_labels(self, images, teacher, tmp_path):
        config = configure(tmp_path / 'run', images, teacher, losses=('KDLoss', 'DKDLoss'))
        message = (
            'losses: DKDLoss: DKDLoss needs a label for each image, which '
            'train_dataloader.dataset=UnlabeledFolder does not give; use a loss'
        )
        # Found although the first images of an epoch may all have labels.
        config['train_dataloader']['sampler']['unlabeled_ratio'] = 0.1
        with pytest.raises(ConfigError, match=message):
            self.check(config)
        with pytest.raises(ConfigError, match=message):
            train(config)  # without the preflight, before the first step

    def test_a_mistake_in_the_second_pipeline(self, images, teacher, tmp_path):
        config = configure(tmp_path / 'run', images, teacher)
        config['train_dataloader']['dataset']['unlabeled']['pipeline'] = PIPELINE[1:]
        with pytest.raises(ConfigError, match='pipeline: must begin with LoadImageFromFile'):
            self.check(config)

    def test_without_a_teacher(self, images, teacher, tmp_path):
        config = configure(tmp_path / 'run', images, teacher)
        config['model'] = config['model']['student']
        config['model']['data_preprocessor'] = dict(NORMALIZATION, num_classes=3)
        with pytest.raises(ConfigError, match='must be a labelled data set, as ImageClassifier'):
            self.check(config)
