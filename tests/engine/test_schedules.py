"""Schedules of a run with another number of epochs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    ReduceOnPlateauLR,
    StepLR,
)
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.schedules import check_units, stretch_schedules, warn_of_cut_off

WARM_UP = dict(type='LinearLR', by_epoch=True, begin=0, end=4)


def stretch(config, before=300, now=400, per_epoch=10):
    lengths = ({True: length, False: length * per_epoch} for length in (before, now))
    return stretch_schedules(config, *lengths)


@pytest.mark.parametrize(
    ('config', 'changed'),
    [
        (dict(type='CosineAnnealingLR', begin=3, end=300, T_max=296), dict(end=400, T_max=396)),
        (dict(type='CosineAnnealingLR', begin=3, T_max=297), dict(T_max=397)),
        (dict(type='CosineAnnealingLR', by_epoch=False, T_max=3000), dict(T_max=4000)),
        (dict(type='PolyLR', end=300), dict(end=400)),
        (dict(type='OneCycleLR', total_steps=300), dict(total_steps=400)),
        (dict(type='LinearLR', start_factor=1.0, end_factor=0.1, end=300), dict(end=400)),
        (dict(type='CosineAnnealingLR', T_max=50), {}),  # restarts
        (dict(type='CosineAnnealingLR'), {}),  # ends with the run by itself
        (dict(type='MultiStepLR', milestones=[100, 200]), {}),
        (dict(type='LinearLR', start_factor=1.0, end_factor=0.1, begin=299), {}),
        (WARM_UP, {}),
        (WARM_UP | dict(end=300), {}),
    ],
)
def test_only_what_ends_with_the_run_is_stretched(config, changed):
    before = dict(config)
    assert stretch(config) == config | changed
    assert config == before
    assert stretch([WARM_UP, config]) == [WARM_UP, config | changed]


def test_a_shorter_run():
    cosine = dict(type='CosineAnnealingLR', begin=3, end=300, T_max=296)
    assert stretch(cosine, now=100) == cosine | dict(end=100, T_max=96)
    assert stretch(cosine, now=3) == cosine
    assert stretch(cosine, now=4) == cosine


WARNING = 'train_cfg.max_epochs={}: training ends before {}; shorten param_scheduler, too'
RATE = 'the warm-up, which reaches the full learning rate in epoch {}'


@pytest.mark.parametrize(
    ('epochs', 'schedules', 'message'),
    [
        (1, [(LinearLR, dict(begin=0, end=4)), (CosineAnnealingLR, dict(T_max=9))], RATE.format(4)),
        (3, [(LinearLR, dict(begin=0, end=4)), (CosineAnnealingLR, dict(T_max=9))], RATE.format(4)),
        (4, [(LinearLR, dict(begin=0, end=4))], None),
        (2, [(ConstantLR, dict(end=3))], RATE.format(3)),
        (2, [(ConstantLR, dict())], None),
        (2, [(LinearLR, dict(by_epoch=False, end=31))], RATE.format(4)),
        (4, [(LinearLR, dict(by_epoch=False, end=31))], None),
        (40, [(LinearLR, dict(end=4)), (CosineAnnealingLR, dict(begin=3, end=300, T_max=9))], 300),
        (40, [(LinearLR, dict(start_factor=1.0, end_factor=0.1, end=50))], 50),
        (40, [(CosineAnnealingLR, dict(T_max=9, end=40)), (StepLR, dict(step_size=9))], 0),
        # A Runner sets `end` to the length of the run.
        (40, [(CosineAnnealingLR, dict(begin=3, T_max=47, end=40))], 50),
        (40, [(CosineAnnealingLR, dict(begin=3, T_max=37, end=40))], 0),
        (40, [(MultiStepLR, dict(milestones=[20, 50], end=40))], 50),
        (40, [(MultiStepLR, dict(milestones=[20, 40]))], 0),
        (40, [(StepLR, dict(step_size=9, by_epoch=False))], 0),
        (40, [(CosineAnnealingLR, dict(T_max=450, by_epoch=False))], 45),
        (40, [(ConstantLR, dict(factor=1.0, end=50))], 0),
    ],
)
def test_a_run_that_ends_before_its_schedule(epochs, schedules, message):
    """Ten steps an epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    loop, found = object.__new__(EpochBasedTrainLoop), []
    loop._max_epochs, loop.dataloader = epochs, range(10)
    runner = SimpleNamespace(
        train_loop=loop,
        param_schedulers=[kind(optimizer, **arguments) for kind, arguments in schedules],
        logger=SimpleNamespace(warning=found.append),
    )
    warn_of_cut_off(runner)
    if isinstance(message, int) and message:
        message = f"the learning rate's schedule, which is for {message} epochs"
    assert found == ([WARNING.format(epochs, message)] if message else [])


def test_a_run_in_steps_that_ends_in_its_warm_up():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    loop, found = object.__new__(IterBasedTrainLoop), []
    loop._max_iters = 20
    runner = SimpleNamespace(train_loop=loop, logger=SimpleNamespace(warning=found.append))
    for end, count in ((20, 0), (21, 1)):
        runner.param_schedulers = {'a': [LinearLR(optimizer, by_epoch=False, end=end)]}
        warn_of_cut_off(runner)
        assert len(found) == count
    assert found[0].startswith('train_cfg.max_iters=20: training ends before the warm-up, which ')


def test_schedules_of_a_run_in_steps_count_steps():
    """But one that follows a metric steps after each validation."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    in_steps, in_epochs = StepLR(optimizer, 9, by_epoch=False), LinearLR(optimizer, end=4)
    plateau = ReduceOnPlateauLR(optimizer, monitor='loss')
    runner = SimpleNamespace(train_loop=object.__new__(IterBasedTrainLoop))
    for schedules in (None, [in_steps, plateau], dict(a=[in_steps])):
        runner.param_schedulers = schedules
        check_units(runner)
    message = '^param_scheduler: LinearLR.by_epoch=True: must be False, with all lengths in iterat'
    for schedules in ([in_steps, in_epochs], dict(a=[in_steps], b=[in_epochs])):
        runner.param_schedulers = schedules
        with pytest.raises(ConfigError, match=message):
            check_units(runner)
    runner.train_loop = object.__new__(EpochBasedTrainLoop)
    check_units(runner)
