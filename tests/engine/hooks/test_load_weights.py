"""Weights that a Runner loads: counted, in any format, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import mldr, resnet, runner_config, timm_resnet, train
from mmengine.config import Config
from mmengine.runner import FlexibleRunner

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.launch import start
from mldr_kd_mm.engine.preflight import preflight
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.registry import MODELS

HOOKS = dict(load_weights=dict(type='LoadWeightsHook'))
PREPROCESSOR = dict(num_classes=10)
STILL = dict(optimizer=dict(type='SGD', lr=1e-30))


def save(path, config, seed=3, **content) -> tuple[str, dict]:
    """Write the weights of a model as timm's and DeiT's trainers do."""
    torch.manual_seed(seed)
    weights = MODELS.build(config).state_dict()
    torch.save(dict(model=weights, **content), path)
    return str(path), weights


def log_of(runner) -> str:
    return Path(runner.log_dir, f'{runner.timestamp}.log').read_text()


@pytest.mark.parametrize('classes', [10, 7])
def test_load_from(classes, tmp_path):
    """With an EMAHook, which copies what has been loaded."""
    path, weights = save(tmp_path / 'deit.pth', resnet(classes))
    runner = train(
        mldr(),
        tmp_path / 'run',
        load_from=path,
        default_hooks=HOOKS,
        custom_hooks=[dict(type='EMAHook', momentum=0.5)],
        optim_wrapper=STILL,
    )
    averages = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module
    for model in (runner.model, averages):
        student = model.student.state_dict()
        assert torch.equal(student['backbone.conv1.weight'], weights['backbone.conv1.weight'])
        if classes == 10:
            assert torch.equal(student['head.fc.weight'], weights['head.fc.weight'])
    count = len(weights) - (0 if classes == 10 else 2)
    log = log_of(runner)
    assert f'load_from={path!r}: {count} weights matched, {len(weights) - count} missing, ' in log
    assert ('the head head.fc starts anew: 7 classes in the file' in log) == (classes == 7)
    assert 'not in the file: neck' in log
    assert 'do not match exactly' not in log


def test_load_from_with_the_flexible_runner(tmp_path):
    """Its strategies may shard the model, so the weights are matched with another one."""
    path, weights = save(tmp_path / 'deit.pth', resnet(7))
    config = runner_config(
        mldr(), tmp_path / 'run', load_from=path, default_hooks=HOOKS, optim_wrapper=STILL
    )
    runner = FlexibleRunner.from_cfg(Config(dict(config, env_cfg=dict())))
    runner.train()
    trained = runner.model.student.state_dict()
    assert torch.equal(trained['backbone.conv1.weight'], weights['backbone.conv1.weight'])
    assert 'the head head.fc starts anew: 7 classes in the file' in log_of(runner)


def test_what_does_not_fit(tmp_path):
    path, _ = save(tmp_path / 'other.pth', timm_resnet())
    config = runner_config(resnet(data_preprocessor=PREPROCESSOR), tmp_path / 'run', load_from=path)
    with pytest.raises(ConfigError, match=f'load_from={path!r}: .* 102 missing'):
        preflight(Config(config), 'model', 'train_cfg')
    assert not (tmp_path / 'run').exists()
    del config['default_hooks']  # the hook is added
    with pytest.raises(ConfigError, match=f'load_from={path!r}: .* 102 missing'):
        start(Config(dict(config, launcher='none')), 'train')
    assert not list((tmp_path / 'run').glob('*.pth'))


def test_a_test_needs_the_head(tmp_path):
    path, _ = save(tmp_path / 'a.pth', resnet(7))
    cfg = Config(runner_config(mldr(), tmp_path / 'run', load_from=path))
    preflight(cfg, 'model', 'train_cfg')
    with pytest.raises(ConfigError, match=f'checkpoint={path!r}: its head has 7 classes'):
        preflight(cfg, 'model')


def test_resume(tmp_path):
    model = resnet(data_preprocessor=PREPROCESSOR)
    runner = train(model, tmp_path / 'run', default_hooks=HOOKS)
    path = tmp_path / 'run/epoch_1.pth'
    content = torch.load(path, weights_only=False)
    content['state_dict'] = {
        name.replace('head.', 'haed.'): value for name, value in content['state_dict'].items()
    }
    torch.save(content, path)
    with pytest.raises(ConfigError, match=r'resume=.*does not fit the model: haed\.fc\.weight'):
        train(model, tmp_path / 'run', max_epochs=2, default_hooks=HOOKS, resume=True)
    torch.save(dict(content, state_dict=runner.model.state_dict()), path)
    resumed = train(model, tmp_path / 'run', max_epochs=2, default_hooks=HOOKS, resume=True)
    count = len(runner.model.state_dict())
    assert re.search(f'resume=.*{count} weights matched, 0 missing, 0 unexpec', log_of(resumed))


def test_what_timm_has_loaded_is_kept(tmp_path):
    """mmpretrain would initialise a TimmClassifier without a teacher again."""
    path, weights = save(tmp_path / 'a.pth', timm_resnet())
    model = timm_resnet(checkpoint_path=path, data_preprocessor=PREPROCESSOR)
    del model['type']
    config = dict(model, type='TimmClassifier')
    runner = train(config, tmp_path / 'run', default_hooks=HOOKS, optim_wrapper=STILL)
    trained = runner.model.state_dict()
    assert torch.equal(trained['conv1.0.weight'], weights['conv1.0.weight'])
    assert torch.equal(build_classifier(config).state_dict()['fc.weight'], weights['fc.weight'])
