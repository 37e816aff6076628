"""Facts read from checkpoints, which may be malformed."""

import numpy as np
import pytest
from mmengine.logging import HistoryBuffer

from mldr_kd_mm.apis.run_record import RunRecord, validation_part
from mldr_kd_mm.utils.errors import ConfigError

COMMIT = '0123456789abcdef' * 2 + '01234567'


def test_reads_each_fact():
    accuracy = HistoryBuffer(np.array([10.0, 30.0, 20.0]), np.ones(3))
    record = RunRecord.from_checkpoint(
        {
            'meta': {
                'cfg': 'a = 1',
                'epoch': 3,
                'iter': 12,
                'seed': 0,
                'experiment_name': 'run\n`1`',
                'mmengine_version': f'0.10.7{COMMIT}',
                'dataset_meta': {'classes': ('cat', 'dog\n')},
                'steps': {'batch_size': 4, 'processes': 2},
            },
            'message_hub': {
                'log_scalars': {'val/accuracy/top1': accuracy, 'val/time': accuracy, 'x': accuracy},
                'runtime_info': {
                    'last_validated_epoch': 3,
                    'best_ckpt': '/home/me/best.pth',
                    'teacher_metrics': {'accuracy/top1': 50.0, 'odd': 'text'},
                },
            },
            'ema_state_dict': {},
        }
    )
    assert record == RunRecord(
        config='a = 1',
        classes=('cat', 'dog\n'),
        dataset_meta={'classes': ('cat', 'dog\n')},
        experiment="run'1'",
        epoch='3',
        iteration='12',
        seed='0',
        mmengine='0.10.7',
        commit=COMMIT,
        batch_size='4',
        processes='2',
        has_ema=True,
        metrics={'accuracy/top1': [10.0, 30.0, 20.0]},
        teacher_metrics={'accuracy/top1': 50.0},
        validated_epoch='3',
        best_checkpoint='best.pth',
    )


@pytest.mark.parametrize(
    'content',
    [
        {},
        {'meta': 3, 'message_hub': []},
        {'meta': {'cfg': b'a', 'dataset_meta': {'classes': 3}, 'steps': 1}},
        {'message_hub': {'log_scalars': {'val/a': 3}, 'runtime_info': {'best_ckpt': 3}}},
    ],
)
def test_malformed_facts_are_missing(content):
    record = RunRecord.from_checkpoint(content)
    assert record == RunRecord(dataset_meta=record.dataset_meta)


def test_a_score_has_two_digits():
    """mmengine stores a float32 as a float64, with digits that mean nothing."""
    content = dict(message_hub=dict(runtime_info=dict(best_score=61.333335876464844)))
    assert RunRecord.from_checkpoint(content).best_score == '61.33'


CROP = dict(type='CenterCrop', crop_size=8)


def test_validation_set_of_several():
    parts = [dict(type='A', pipeline=[CROP]), dict(dataset=dict(type='B', pipeline=[CROP]))]
    run = dict(val_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=parts)))
    assert validation_part(run) == parts[0]
    parts[1]['dataset']['pipeline'] = []
    with pytest.raises(ConfigError, match='^val_dataloader.dataset.datasets: must have the same'):
        validation_part(run)
    assert validation_part(dict(val_dataloader=dict(dataset=parts[1]))) == parts[1]['dataset']
