"""check_teacher_cache.py on the cache of a real run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers import mldr, resnet, runner_config
from mmengine.config import Config
from mmengine.runner import Runner

from mldr_kd_mm.models.distillers.teacher_cache import _Array

CHECKER = Path(__file__).parents[3] / 'tools/analysis_tools/check_teacher_cache.py'
MIXING = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])


@pytest.fixture
def check(capfd, monkeypatch):
    """Return a function that runs the tool and returns its exit code, stdout and stderr."""
    monkeypatch.setenv('LOCAL_RANK', '0')

    def run(*args):
        main = runpy.run_path(CHECKER)['main']
        capfd.readouterr()
        try:
            main([str(arg) for arg in args])
        except SystemExit as end:
            return end.code, *capfd.readouterr()
        return 0, *capfd.readouterr()

    return run


def record(tmp_path, **student):
    """Write a config, record its teacher cache, and return the config's path."""
    losses = [dict(loss=dict(type='KDLoss')), dict(loss=dict(type='CCLoss'), name='cc')]
    losses[1] |= dict(student='feature', teacher='feature')
    model = mldr(teacher=resnet(), student=resnet(**student), losses=losses, neck=None)
    hooks = dict(teacher_cache=dict(type='TeacherCacheHook', dir=str(tmp_path / 'cache')))
    config = Config(runner_config(model, tmp_path / 'run', max_epochs=2, default_hooks=hooks))
    config.train_dataloader.sampler = dict(type='ViewSampler', views=2)
    config.train_dataloader.dataset.pipeline.insert(
        0, dict(type='RandomCrop', crop_size=32, padding=4)
    )
    path = tmp_path / 'config.py'
    config.dump(path)
    Runner.from_cfg(config).train()
    return path


@pytest.mark.parametrize('student', [{}, dict(train_cfg=MIXING)], ids=['as they are', 'mixed'])
def test_what_was_recorded_is_right(tmp_path, check, student):
    path = record(tmp_path, **student)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob('*')}
    code, out, err = check(path)
    assert code == 0, err
    assert '80 samples compared\n' in out
    assert 'logits: largest error' in out and 'feature: largest error' in out
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob('*')} == files
    assert '40 samples compared\n' in check(path, '--samples', 40)[1]


def test_wrong_values_with_right_checksums(tmp_path, check, monkeypatch):
    write = _Array.write

    def write_larger(array, places, values, key):
        if array.encoding.shape == (64,) and places[0] >= 40:  # features of the second view
            values = (values.view(np.float32) * np.float32(1.01)).view(np.uint8)
        write(array, places, values, key)

    monkeypatch.setattr(_Array, 'write', write_larger)
    path = record(tmp_path)
    code, out, _ = check(path)
    assert code == 1
    error = re.search(r'feature: largest error (\S+) of the largest value', out)
    assert 0.005 < float(error[1]) < 0.02


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--samples', 0], 'samples=0: must be a positive integer'),
        (['--cfg-options', 'randomness.seed=1'], 'recorded with other settings: seed was 0, is 1'),
        (['--cfg-options', 'default_hooks.teacher_cache.dir=lost'], "dir='lost': must be the fold"),
    ],
)
def test_mistake_is_one_line(tmp_path, check, options, message):
    code, _, err = check(record(tmp_path), *options)
    assert code == 2
    assert message in err.splitlines()[-1]
    assert 'Traceback' not in err


def test_nothing_is_recorded(tmp_path, check):
    path = record(tmp_path)
    (tmp_path / 'cache/logits.crc').write_bytes(bytes(2 * 40 * 4))
    code, _, err = check(path)
    assert code == 2
    assert err.splitlines()[-1].startswith('error: teacher_cache: no batch is recorded completely')
