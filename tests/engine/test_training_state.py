"""Fields of a checkpoint that hooks and the Runner read."""

from __future__ import annotations

import copy

import pytest
import torch

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.training_state import check_training_state

STEPS = dict(processes=1, batch_size=8, iters_per_epoch=5)
INFO = dict(
    last_ckpt='epoch_1.pth',
    best_ckpt=None,
    best_score=torch.tensor(50.0),
    keep_ckpt_ids=[1],
    outdated_ckpts=[],
    last_validated_epoch=1,
    skipped_steps=0,
    teacher_metrics={'accuracy/top1': 9.0},
)
CHECKPOINT = dict(
    meta=dict(epoch=1, iter=5, seed=0, steps=STEPS),
    message_hub=dict(
        log_scalars={}, runtime_info=INFO, resumed_keys={'last_ckpt': True, 'time': False}
    ),
)


def test_whole():
    check_training_state(CHECKPOINT, 'resume')


@pytest.mark.parametrize(
    'field, value',
    [
        ('meta', None),
        ('meta.epoch', '1'),
        ('meta.epoch', True),
        ('meta.iter', -1),
        ('meta.iter', 2.0),
        ('meta.seed', 'x'),
        ('meta.schedule_length', '300'),
        ('meta.run', 'a' * 32),
        ('meta.steps', [1, 8, 5]),
        ('meta.steps.batch_size', 0),
        ('message_hub', torch.ones(1)),
        ('message_hub.log_scalars', []),
        ('message_hub.runtime_info', 'x'),
        ('message_hub.resumed_keys', None),
        ('message_hub.resumed_keys.last_ckpt', False),
        ('message_hub.runtime_info.last_ckpt', 1),
        ('message_hub.runtime_info.interim_ckpt', ['a']),
        ('message_hub.runtime_info.best_ckpt_loss', {}),
        ('message_hub.runtime_info.best_score', 'high'),
        ('message_hub.runtime_info.keep_ckpt_ids', 3),
        ('message_hub.runtime_info.keep_ckpt_ids', ['../../home']),
        ('message_hub.runtime_info.outdated_ckpts', 'epoch_1.pth'),
        ('message_hub.runtime_info.outdated_ckpts', [None]),
        ('message_hub.runtime_info.last_validated_epoch', '1\n2'),
        ('message_hub.runtime_info.skipped_steps', 'x' * 1000),
        ('message_hub.runtime_info.teacher_metrics', {'accuracy/top1': 'x'}),
    ],
)
def test_wrong(field, value):
    checkpoint = copy.deepcopy(CHECKPOINT)
    *parents, last = field.split('.')
    place = checkpoint
    for name in parents:
        place = place[name]
    place[last] = value

    with pytest.raises(ConfigError) as caught:
        check_training_state(checkpoint, "resume='x.pth'")

    text = str(caught.value)
    assert text.startswith(f"resume='x.pth': {field}=") and ': must be ' in text
    assert text.isprintable() and len(text) < 400


@pytest.mark.parametrize('field', ['meta', 'message_hub', 'meta.iter', 'meta.steps.processes'])
def test_missing(field):
    checkpoint = copy.deepcopy(CHECKPOINT)
    *parents, last = field.split('.')
    place = checkpoint
    for name in parents:
        place = place[name]
    del place[last]
    with pytest.raises(ConfigError, match=f'{field}=missing: must be '):
        check_training_state(checkpoint, 'resume')
