"""Which changes of a config a resumed run accepts."""

from __future__ import annotations

import pytest
import torch
from helpers import mldr, resnet, runner_config, vit
from mmengine.config import Config

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.resume_check import (
    check_groups,
    check_optimizer_state,
    check_refused,
    check_weights,
    compare_configs,
)
from mldr_kd_mm.utils.safe_config import parse_config


def changes(tmp_path, options, delete=()):
    """Compare a config with itself after a change, in the form in which checkpoints store it."""
    config = Config(
        runner_config(mldr(), tmp_path, param_scheduler=[dict(type='CosineAnnealingLR')])
    )
    other = Config(config.to_dict())
    other.merge_from_dict(options)
    for name in delete:
        del other[name]
    return compare_configs(*(parse_config(each.pretty_text) for each in (config, other)))


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'work_dir': 'elsewhere'},
        {'resume': True},
        {'load_from': 'some.pth'},
        {'log_level': 'DEBUG'},
        {'launcher': 'pytorch'},
        {'train_dataloader.num_workers': 4},
        {'val_dataloader.pin_memory': True},
        {'optim_wrapper.optimizer.fused': True},
        {'model.student.backbone.init_cfg': dict(type='Pretrained', checkpoint='x.pth')},
        {'default_hooks.logger.interval': 3},
        {'model.input_size': [3, 32, 32]},  # was a tuple
    ],
)
def test_what_makes_no_difference(tmp_path, options):
    assert changes(tmp_path, options) == ([], [])


@pytest.mark.parametrize(
    ('field', 'value', 'of_schedule'),
    [
        ('optim_wrapper.optimizer.lr', 0.001, True),
        ('optim_wrapper.optimizer.weight_decay', 0.1, True),
        ('optim_wrapper.clip_grad', dict(max_norm=1), True),
        ('train_cfg.max_epochs', 9, True),
        ('param_scheduler.0.T_max', 9, True),
        ('train_cfg.val_interval', 2, False),
        ('model.losses.0.weight', 2.0, False),
        ('model.losses.0.loss.tau', 4.0, False),
        ('model.teacher_checkpoint', 'moved.pth', False),
        ('model.teacher.data_preprocessor', dict(mean=[0, 0, 0]), False),
        ('model.student.backbone.drop_rate', 0.1, False),
        ('model.data_preprocessor.mean', 127.0, False),
        ('data_preprocessor', dict(mean=[0, 0, 0]), False),
        ('train_dataloader.batch_size', 5, False),
        ('train_dataloader.dataset.subset.per_class', 5, False),
        ('train_dataloader.dataset.pipeline', [], False),
        ('val_evaluator.topk', 5, False),
        ('default_hooks.checkpoint', dict(type='CheckpointHook'), False),
        ('custom_hooks', [dict(type='MyHook')], False),
    ],
)
def test_what_takes_effect_is_listed(tmp_path, field, value, of_schedule):
    found = changes(tmp_path, {field: value})

    assert found.refused == []
    assert found.of_schedule == of_schedule
    if isinstance(value, dict):
        assert all(change.field.startswith(field) for change in found.applied) and found.applied
    else:
        assert [(change.field, change.now) for change in found.applied] == [(field, value)]


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('model.teacher', resnet()),
        ('model.teacher.backbone.arch.num_layers', 5),
        ('model.student', vit()),
        ('model.student.backbone.type', 'ResNet'),
        ('model.losses', []),
        ('model.losses.0.loss.type', 'KDLoss'),
        ('optim_wrapper.optimizer.type', 'AdamW'),
        ('randomness.seed', 1),
        ('train_cfg.by_epoch', False),
        ('train_dataloader.dataset.type', 'CIFAR100'),
    ],
)
def test_what_makes_another_run_is_refused(tmp_path, field, value):
    found = changes(tmp_path, {field: value})

    assert found.refused
    assert all(change.field.startswith(field.split('.')[0]) for change in found.refused)
    with pytest.raises(ConfigError) as error:
        check_refused(found.refused, "resume='x.pth'")
    message = str(error.value)
    assert message.startswith("resume='x.pth': would be another run, " + field[:9])
    assert len(message.splitlines()) == 1 and len(message) < 700


def test_a_student_instead_of_a_distiller(tmp_path):
    config = runner_config(mldr(), tmp_path)
    found = compare_configs(config, config | dict(model=resnet()))
    assert 'model.type' in [change.field for change in found.refused]


def test_a_hostile_value_stays_on_its_line(tmp_path):
    config = runner_config(mldr(), tmp_path)
    stored = config | dict(randomness=dict(seed='0\n\x1b[31mCRITICAL' + 'x' * 1000))
    (change,) = compare_configs(stored, config).refused
    assert str(change).isprintable() and len(str(change)) < 150


def test_weights_of_another_model():
    saved = {'module.a': torch.ones(2, 3), 'b': torch.ones(1)}
    check_weights(saved, {'a': torch.zeros(2, 3), 'b': torch.zeros(1)}, 'resume')
    for model, message in [
        (
            {'a': torch.ones(4, 3), 'b': torch.ones(1)},
            r'a is \(2, 3\) .* and \(4, 3\) in the model;',
        ),
        ({'a': torch.ones(2, 3)}, r'b is \(1,\) in the checkpoint and missing in the model'),
        ({'a': torch.ones(1), 'c': torch.ones(1)}, 'in the model, and 2 more differ'),
    ]:
        with pytest.raises(ConfigError, match=message):
            check_weights(saved, model, 'resume')


def test_groups_of_another_optimizer():
    groups = [dict(params=[0, 1], lr=1), dict(params=[2], lr=2)]
    checkpoint = dict(meta={}, state_dict={}, optimizer=dict(param_groups=groups))
    check_groups(checkpoint, [['a', 'b'], ['c']], 'resume')
    for wanted in ([['a', 'b', 'c']], [['a'], ['b', 'c']]):
        with pytest.raises(ConfigError, match='had 3 parameters in 2 groups, now 3 parameters in'):
            check_groups(checkpoint, wanted, 'resume')
    checkpoint['meta']['parameter_groups'] = [['a', 'b'], ['c']]
    check_groups(checkpoint, [['a'], ['b', 'c']], 'resume')
    with pytest.raises(ConfigError, match='had 3 parameters in 2 groups, now 3 parameters in'):
        check_groups(checkpoint, [['a', 'b'], ['d']], 'resume')


def test_weights_alone():
    with pytest.raises(ConfigError, match='no optimizer state, as in the best checkpoints'):
        check_optimizer_state(dict(state_dict={}, meta={}), 'resume')
