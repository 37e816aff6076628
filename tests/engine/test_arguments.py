"""What --lr and --clip-grad change in a config."""

import os
import re
from argparse import ArgumentParser, Namespace

import pytest
from mmengine.config import Config

from mldr_kd_mm.engine import arguments
from mldr_kd_mm.engine.arguments import add_training_arguments, apply_training_arguments
from mldr_kd_mm.utils.errors import ConfigError

COSINE = dict(type='CosineAnnealingLR', T_max=10, eta_min=0.001)


def applied(*arguments, **fields):
    """Return a config after command-line arguments."""
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)), **fields))
    parser = ArgumentParser()
    add_training_arguments(parser)
    apply_training_arguments(cfg, parser.parse_args(arguments))
    return cfg


@pytest.mark.parametrize(
    'schedules', [COSINE, [dict(type='LinearLR', start_factor=0.01, end=3), COSINE]]
)
def test_lr_scales_the_final_rates(schedules):
    cfg = applied('--lr', '0.02', param_scheduler=schedules)
    assert cfg.optim_wrapper.optimizer.lr == 0.02
    listed = cfg.param_scheduler if isinstance(schedules, list) else [cfg.param_scheduler]
    assert listed[-1].eta_min == pytest.approx(0.0002)
    assert listed[0].get('start_factor') in (None, 0.01)


def test_lr_scales_the_rates_of_every_schedule():
    cfg = applied(
        '--lr',
        '0.02',
        param_scheduler=[
            dict(type='OneCycleLR', eta_max=0.1),
            dict(type='ReduceOnPlateauLR', min_value=0.001),
            dict(type='CosineAnnealingMomentum', eta_min=0.5),
        ],
    )
    one_cycle, plateau, momentum = cfg.param_scheduler
    found = [one_cycle.eta_max, plateau.min_value, momentum.eta_min]
    assert found == pytest.approx([0.02, 0.0002, 0.5])


def test_lr_needs_no_schedule():
    assert applied('--lr', '0.02').optim_wrapper.optimizer.lr == 0.02


def test_lr_is_not_scaled():
    """The advice of a diverged run is a fraction of the rate that it had."""
    scaling = dict(base_batch_size=8)
    assert applied('--auto-scale-lr', auto_scale_lr=scaling).auto_scale_lr.enable
    cfg = applied('--auto-scale-lr', '--lr', '0.02', auto_scale_lr=scaling)
    assert cfg.optim_wrapper.optimizer.lr == 0.02 and not cfg.auto_scale_lr.enable


def test_clip_grad():
    cfg = applied('--clip-grad', '5', '--resume')
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=5.0)
    assert cfg.resume


def test_neither_changes_nothing():
    assert applied().optim_wrapper == dict(optimizer=dict(type='SGD', lr=0.1))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--lr', '0'], 'lr=0.0: must be a positive number'),
        (['--lr', 'nan'], 'lr=nan: must be a positive number'),
        (['--clip-grad', '-1'], 'clip_grad=-1.0: must be a positive number'),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        applied(*arguments)


@pytest.mark.parametrize(
    ('launcher', 'variables', 'local_rank'),
    [
        ('mpi', dict(OMPI_COMM_WORLD_LOCAL_RANK='3'), '3'),
        ('mpi', dict(OMPI_COMM_WORLD_LOCAL_RANK='3', LOCAL_RANK='1'), '1'),
        ('pytorch', dict(OMPI_COMM_WORLD_LOCAL_RANK='3', LOCAL_RANK='2'), '2'),
        ('none', {}, '0'),
    ],
)
def test_local_rank(monkeypatch, launcher, variables, local_rank):
    """A rank uses the GPU of this number."""
    monkeypatch.setattr(os, 'environ', dict(variables))
    monkeypatch.setattr(arguments, 'fit_to_machine', lambda cfg: None)
    given = Namespace(cfg_options={}, work_dir='x', launcher=launcher, local_rank=0)
    arguments.apply_arguments(Config(), given)
    assert os.environ['LOCAL_RANK'] == local_rank
