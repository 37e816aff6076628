"""Parameter groups that are merged, and checkpoints with other groups."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from helpers import vit
from mmengine.optim import CosineAnnealingLR, LinearLR, build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mldr_kd_mm.engine.parameter_groups import group_names, merge_groups, regroup, saved_names
from mldr_kd_mm.registry import MODELS

DECAY = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0)
KEYS = dict(custom_keys={'head': dict(lr_mult=2.0), 'layers.1': dict(decay_mult=0.5)})
LAYERS = dict(layer_decay_rate=0.5, flat_decay_mult=0.0)


def build(paramwise, constructor='DefaultOptimWrapperConstructor', model=None, optimizer=None):
    """Return a model and its optimizer's wrapper."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mldr_kd_mm'):
        model = model or MODELS.build(vit())
        config = dict(
            optimizer=optimizer or dict(type='AdamW', lr=0.01, weight_decay=0.05),
            constructor=constructor,
            paramwise_cfg=copy.deepcopy(paramwise),
        )
        return model, build_optim_wrapper(model, config)


def settings(model, groups):
    """Return the settings of each parameter."""
    names = group_names(model, groups)
    left_out = ('params', 'param_name')
    return {
        name: {key: value for key, value in group.items() if key not in left_out}
        for group, each in zip(groups, names, strict=True)
        for name in each
    }


@pytest.mark.parametrize(
    ('paramwise', 'scope', 'constructor', 'count'),
    [
        (DECAY, 'mmengine', 'DefaultOptimWrapperConstructor', 2),
        (KEYS, 'mmengine', 'DefaultOptimWrapperConstructor', 3),
        (LAYERS, 'mmpretrain', 'LearningRateDecayOptimWrapperConstructor', 12),
        (None, 'mmengine', 'DefaultOptimWrapperConstructor', 1),
    ],
    ids=['decay', 'keys', 'layers', 'plain'],
)
def test_each_parameter_keeps_its_settings(paramwise, scope, constructor, count):
    model, merged = build(paramwise, constructor)
    _, theirs = build(paramwise, f'{scope}.{constructor}', model)
    groups = merged.optimizer.param_groups
    assert len(groups) == count
    assert settings(model, groups) == settings(model, theirs.optimizer.param_groups)
    # The first is logged.
    first, expected = ({n: r[0] for n, r in w.get_lr().items()} for w in (merged, theirs))
    assert first == expected


def test_only_equal_settings_are_merged():
    groups = [
        dict(params=[1], lr=1.0, betas=(0.9, 0.99)),
        dict(params=[2, 3], lr=torch.tensor(1.0), betas=(0.9, 0.99)),
        dict(params=[4], lr=1.0 + 1e-15, betas=(0.9, 0.99)),
        dict(params=[5], lr=1, betas=(0.9, 0.99)),
        dict(params=[6], betas=(0.9, 0.99), lr=1.0),
        dict(params=[7], lr=1.0, betas=(0.9, 0.98)),
    ]
    merged = merge_groups(groups)
    assert [group['params'] for group in merged] == [[1, 2, 3, 6], [4], [5], [7]]
    assert [group['params'] for group in groups] == [[1], [2, 3], [4], [5], [6], [7]]


def test_groups_that_processes_share_are_not_merged():
    """ZeroRedundancyOptimizer copies settings to its own optimizer, group by group."""
    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)
    try:
        optimizer = dict(type='ZeroRedundancyOptimizer', optimizer_type='AdamW', lr=0.01)
        optimizer['weight_decay'] = 0.05
        _, wrapper = build(KEYS, optimizer=optimizer)
        groups, inner = wrapper.optimizer.param_groups, wrapper.optimizer.optim.param_groups
        assert len(inner) > 3
        assert [group['lr'] for group in groups] == [group['lr'] for group in inner]
    finally:
        dist.destroy_process_group()


def step(model, wrapper, schedule, seed):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    wrapper.step()
    schedule.step()


@pytest.mark.parametrize('saved_by', ['mmengine', 'mldr_kd_mm'])
@pytest.mark.parametrize('now', [DECAY, dict(bias_decay_mult=0.0)], ids=['same', 'others'])
def test_checkpoint_of_other_groups_goes_on_exactly(saved_by, now):
    """Earlier versions saved a group for each parameter; changed options form other groups."""
    constructor = f'{saved_by}.DefaultOptimWrapperConstructor'
    model, wrapper = build(DECAY, constructor)
    schedule = LinearLR(wrapper, start_factor=0.1, end=5)
    for seed in range(3):
        step(model, wrapper, schedule, seed)
    checkpoint = dict(
        meta={},
        state_dict=model.state_dict(),
        optimizer=wrapper.state_dict(),
        param_schedulers=[schedule.state_dict()],
    )
    if saved_by == 'mldr_kd_mm':
        names = group_names(model, wrapper.optimizer.param_groups)
        checkpoint['meta']['parameter_groups'] = names
    checkpoint = copy.deepcopy(checkpoint)

    resumed, again = build(now)
    resumed.load_state_dict(checkpoint['state_dict'])
    later = LinearLR(again, start_factor=0.1, end=5)
    regroup(checkpoint, group_names(resumed, again.optimizer.param_groups))
    again.load_state_dict(checkpoint['optimizer'])
    later.load_state_dict(checkpoint['param_schedulers'][0])

    moments = [
        {name: each.optimizer.state[p]['exp_avg'] for name, p in owner.named_parameters()}
        for owner, each in ((model, wrapper), (resumed, again))
    ]
    assert all(torch.equal(moments[0][name], moments[1][name]) for name in moments[0])
    if now is DECAY:
        for seed in range(3, 6):
            step(model, wrapper, schedule, seed)
            step(resumed, again, later, seed)
        pairs = zip(model.parameters(), resumed.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_schedules_follow_the_groups():
    """Each group of a layer has a rate of its own."""
    constructor = 'LearningRateDecayOptimWrapperConstructor'
    model, wrapper = build(LAYERS, f'mmpretrain.{constructor}')
    schedule = CosineAnnealingLR(wrapper, T_max=4, eta_min_ratio=0.1)
    checkpoint = dict(
        meta={},
        state_dict=model.state_dict(),
        optimizer=wrapper.state_dict(),
        param_schedulers=[schedule.state_dict()],
    )
    checkpoint = copy.deepcopy(checkpoint)

    resumed, again = build(LAYERS, constructor)
    later = CosineAnnealingLR(again, T_max=4, eta_min_ratio=0.1)
    expected = later.base_values
    regroup(checkpoint, group_names(resumed, again.optimizer.param_groups))
    again.load_state_dict(checkpoint['optimizer'])
    later.load_state_dict(checkpoint['param_schedulers'][0])
    assert later.base_values == expected
    assert len(set(expected)) > 2


def test_groups_of_a_timm_classifier():
    """Its weights in a checkpoint lack the prefix that its parameters have."""
    groups = [dict(params=[0])] * 3
    checkpoint = dict(meta={}, state_dict=dict.fromkeys('abc'), optimizer=dict(param_groups=groups))
    present = [['model.a', 'model.c'], ['model.b']]
    assert saved_names(checkpoint, present) == [['model.a'], ['model.b'], ['model.c']]


@pytest.mark.parametrize(
    ('sizes', 'names', 'fits'),
    [
        ([2, 1], None, True),
        ([1, 1, 1], None, True),
        ([1, 2], None, False),
        ([3], None, False),
        ([1, 2], [['a'], ['b', 'c']], True),
        ([1, 2], [['a'], ['b', 'd']], False),
        ([1, 2], [['a', 'b'], ['c']], False),
        ([3], [['a', 'b', 'c']], False),  # no settings of their own before
        ([2], [['a', 'b']], False),
        ([1, 1, 1], [['a'], ['b'], ['b']], False),
    ],
)
def test_groups_that_fit(sizes, names, fits):
    weights = nn.ParameterDict({name: torch.zeros(1) for name in 'abc'}).state_dict()
    groups = [dict(params=[0] * size) for size in sizes]
    meta = {} if names is None else dict(parameter_groups=names)
    checkpoint = dict(meta=meta, state_dict=weights, optimizer=dict(param_groups=groups))
    assert (saved_names(checkpoint, [['a', 'c'], ['b']]) is not None) == fits
