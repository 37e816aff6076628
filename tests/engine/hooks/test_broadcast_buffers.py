"""Validation by several processes, in mmengine's real Runner over gloo."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import faulty  # noqa: F401  registers
import pytest
import torch
from helpers import mldr, resnet, run_ranks, runner_config
from mmengine.config import Config
from mmengine.runner import Runner

WORKER = Path(__file__).with_name('rank_worker.py')


def configure(work_dir, val_size, round_up=True, hook=True, **kwargs):
    """Return the config of a run that saves the model that it validates."""
    hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(type='CheckpointHook', interval=1),
        teacher_accuracy=dict(type='TeacherAccuracyHook'),
    )
    hooks |= dict(buffers=dict(type='BroadcastBuffersHook')) if hook else {}
    model = mldr(teacher=resnet(), student=resnet(), neck=None, losses=[])
    config = runner_config(model, work_dir, default_hooks=hooks, **kwargs)
    config['optim_wrapper'] = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
    config['val_evaluator'] = [dict(type='Accuracy', topk=1), dict(type='SampleCount')]
    pipeline = [dict(type='Darken'), dict(type='PackInputs')]
    config['train_dataloader']['dataset']['pipeline'] = pipeline
    config['val_dataloader']['batch_size'] = 10 if val_size < 100 else 100
    config['val_dataloader']['dataset'] |= dict(subset=None, indices=val_size)
    config['val_dataloader']['sampler']['round_up'] = round_up
    return copy.deepcopy(config)


def in_two_processes(config, folder):
    """Train in two processes; return the metrics of each validation."""
    (folder / 'config.json').write_text(json.dumps(config))
    run_ranks(*[(WORKER, rank, 2, folder) for rank in range(2)])
    first, second = (torch.load(folder / f'found{rank}.pt')['metrics'] for rank in range(2))
    assert first == second
    return first


def validate(config, checkpoint):
    """Return the metrics of a checkpoint, computed in this process."""
    runner = Runner.from_cfg(Config(config | dict(experiment_name='alone')))
    runner.model.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
    return runner.val()


def test_metrics_are_those_of_the_checkpoint(tmp_path):
    config = configure(tmp_path / 'run', val_size=597)
    metrics = in_two_processes(config, tmp_path)
    assert metrics == [validate(config, tmp_path / 'run' / 'epoch_1.pth')]

    (tmp_path / 'store').unlink()
    config = configure(tmp_path / 'without', val_size=597, hook=False)
    assert in_two_processes(config, tmp_path) != metrics


@pytest.mark.slow
@pytest.mark.parametrize(('update_buffers', 'round_up'), [(False, True), (True, False)])
def test_averaged_weights_and_odd_samples(tmp_path, update_buffers, round_up):
    """The two processes get 16 and 15 of 31 samples, in batches of at most 10."""
    ema = dict(type='EMAHook', momentum=0.5, update_buffers=update_buffers)
    config = configure(tmp_path / 'run', val_size=31, round_up=round_up, custom_hooks=[ema])
    (metrics,) = in_two_processes(config, tmp_path)
    assert (metrics['samples'], metrics['different']) == (31, 31)
    del config['custom_hooks']
    assert metrics == validate(config, tmp_path / 'run' / 'epoch_1.pth')

    alone = configure(tmp_path / 'alone', val_size=31)
    Runner.from_cfg(Config(alone)).train()
    teachers = [
        line[line.index('Teacher on') :]
        for name in ('run', 'alone')
        for path in (tmp_path / name).glob('*/*.log')
        for line in path.open()
        if 'Teacher on' in line
    ]
    assert len(teachers) == 2 and teachers[0] == teachers[1]
    assert 'samples 31.00, different 31.00' in teachers[0]
