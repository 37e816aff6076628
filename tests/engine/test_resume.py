"""Runs that are resumed with other settings."""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path

import pytest
from helpers import NORMALIZATION, resnet, runner_config, train
from mmengine.config import Config
from mmengine.hooks import EarlyStoppingHook

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.launch import start
from mldr_kd_mm.utils.checkpoint import load_checkpoint

MODEL = resnet(data_preprocessor=dict(NORMALIZATION))
WIDE = resnet(data_preprocessor=dict(NORMALIZATION))
WIDE['backbone'].update(base_channels=16, stem_channels=16)
WIDE['head']['in_channels'] = 128
STEPS = 4  # in an epoch
LR = 0.02


def optimizer(**kwargs):
    return dict(optimizer=dict(dict(type='SGD', lr=LR, momentum=0.9), **kwargs))


def settings(**kwargs):
    hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(type='AtomicCheckpointHook', interval=1, save_best='accuracy/top1'),
        exact_resume=dict(type='ExactResumeHook'),
    )
    patient = dict(type='EarlyStoppingHook', monitor='accuracy/top1', min_delta=1000, patience=100)
    found = dict(
        default_hooks=hooks,
        optim_wrapper=optimizer(),
        param_scheduler=dict(type='CosineAnnealingLR', T_max=3, convert_to_iter_based=True),
        custom_hooks=[patient],
    )
    return found | kwargs


def run(work_dir, model=MODEL, **kwargs):
    return train(model, work_dir, **(dict(max_epochs=3) | settings(**kwargs)))


def rates(runner):
    return runner.message_hub.get_scalar('train/lr').data[0].tolist()


def cosine(first, last, length, lr=LR):
    """Learning rates of iterations, counted from 0, of a cosine over that many epochs."""
    return pytest.approx(
        [lr * (1 + math.cos(math.pi * i / length / STEPS)) / 2 for i in range(first, last)],
        abs=1e-8,
    )


def early_stopping(runner):
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, EarlyStoppingHook))
    return hook.best_score, hook.wait_count


def log(runner):
    return Path(runner.log_dir, f'{runner.timestamp}.log').read_text()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Return a run of three epochs."""
    return run(tmp_path_factory.mktemp('finished') / 'run')


@pytest.fixture
def resumed(finished, tmp_path):
    """Return a function that resumes a copy of the run from an epoch."""
    shutil.copytree(finished.work_dir, tmp_path / 'run')

    def resume(epoch, **kwargs):
        path = str(tmp_path / 'run' / f'epoch_{epoch}.pth')
        return run(tmp_path / 'run', load_from=path, resume=True, **kwargs)

    return resume


def test_a_lower_learning_rate_takes_effect(finished, resumed):
    runner = resumed(2, optim_wrapper=optimizer(lr=LR / 4, weight_decay=0.01))

    assert rates(finished)[2 * STEPS :] == cosine(2 * STEPS, 3 * STEPS, 3)
    assert rates(runner)[2 * STEPS :] == cosine(2 * STEPS, 3 * STEPS, 3, LR / 4)
    (group,) = runner.optim_wrapper.param_groups
    assert (group['weight_decay'], group['momentum']) == (0.01, 0.9)
    text = log(runner)
    assert f'optim_wrapper.optimizer.lr: {LR} -> {LR / 4}' in text
    assert 'optim_wrapper.optimizer.weight_decay: not set -> 0.01' in text
    # The state of early stopping is that of a run without interruption.
    assert early_stopping(runner)[1] == early_stopping(finished)[1] == 2


def test_more_epochs_stretch_the_schedule_for_good(resumed):
    runner = resumed(3, max_epochs=6)

    whole = rates(runner)[3 * STEPS :]
    assert whole == cosine(3 * STEPS, 6 * STEPS, 6)
    assert 'train_cfg.max_epochs: 3 -> 6' in log(runner)
    assert 'rebuilt for max_epochs=6 instead of 3' in log(runner)

    # The same command again, and then another length.
    assert rates(resumed(4, max_epochs=6))[4 * STEPS :] == whole[STEPS:]
    longer = resumed(6, max_epochs=7)
    assert rates(longer)[6 * STEPS :] == cosine(6 * STEPS, 7 * STEPS, 7)
    assert load_checkpoint(f'{longer.work_dir}/epoch_7.pth')['meta']['schedule_length'] == 3


def test_another_final_rate_is_stretched_too(resumed):
    """As --lr sets it, which the error of a diverged run advises."""
    schedule = dict(settings()['param_scheduler'], eta_min=0.0)
    runner = resumed(3, max_epochs=6, param_scheduler=schedule)
    assert 'param_scheduler.eta_min: not set -> 0.0' in log(runner)
    assert rates(runner)[3 * STEPS :] == cosine(3 * STEPS, 6 * STEPS, 6)


def test_a_random_seed_is_kept(tmp_path):
    """The samples of a resumed run are those of the same permutations."""
    loader = runner_config(MODEL, tmp_path)['train_dataloader']
    loader['sampler'] = dict(type='ViewSampler', shuffle=True)
    options = dict(randomness=dict(seed=None), train_dataloader=loader)
    first = run(tmp_path / 'run', max_epochs=1, **options)
    path = str(tmp_path / 'run/epoch_1.pth')
    second = run(tmp_path / 'run', max_epochs=2, load_from=path, resume=True, **options)
    assert second.train_dataloader.sampler.seed == first.train_dataloader.sampler.seed


def test_a_finished_run_says_so(resumed):
    runner = resumed(3, optim_wrapper=optimizer(lr=LR / 4))

    text = log(runner)
    assert 'the run is complete: train_cfg.max_epochs=3; raise it to train on' in text
    assert 'have no effect until then' in text
    assert runner.iter == 3 * STEPS


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(model=WIDE), r'is \(8, .* and \(16, .* more differ; restore the model'),
        # EMAHook would load the weights first.
        (dict(custom_hooks=[dict(type='EMAHook')]), 'EMAHook in custom_hooks: False -> True'),
        (dict(optim_wrapper=optimizer(type='AdamW', momentum=None)), "'SGD' -> 'AdamW'"),
        (dict(optim_wrapper=dict(**optimizer(), paramwise_cfg=dict(bias_lr_mult=2))), 'groups'),
        (dict(randomness=dict(seed=1)), 'randomness.seed: 0 -> 1'),
    ],
    ids=['wider', 'averaged', 'optimizer', 'groups', 'seed'],
)
def test_another_run_is_refused(finished, tmp_path, changes, message):
    if 'AdamW' in message:
        del changes['optim_wrapper']['optimizer']['momentum']
    path = f'{finished.work_dir}/epoch_3.pth'

    with pytest.raises(ConfigError, match=message) as error:
        run(tmp_path / 'run', load_from=path, resume=True, max_epochs=4, **changes)

    assert str(error.value).startswith(f'resume={path!r}: ')
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.glob('run/*.pth'))


def test_a_runner_with_a_strategy(finished, tmp_path):
    shutil.copytree(finished.work_dir, tmp_path / 'run')
    config = runner_config(
        MODEL,
        tmp_path / 'run',
        max_epochs=3,
        runner_type='FlexibleRunner',
        load_from=str(tmp_path / 'run' / 'epoch_2.pth'),
        resume=True,
        env_cfg=dict(),
        **settings(optim_wrapper=optimizer(lr=LR / 4)),
    )
    config = Config(copy.deepcopy(config))

    runner = start(config, 'train')

    assert rates(runner)[2 * STEPS :] == cosine(2 * STEPS, 3 * STEPS, 3, LR / 4)
    assert 'optim_wrapper.optimizer.lr' in log(runner)
    config.optim_wrapper.optimizer = dict(type='AdamW', lr=LR)
    with pytest.raises(ConfigError, match="'SGD' -> 'AdamW'"):
        start(config, 'train')


def test_a_best_checkpoint_is_refused(finished, tmp_path):
    (path,) = Path(finished.work_dir).glob('best_*.pth')
    with pytest.raises(ConfigError, match='has no optimizer state, as in the best checkpoints'):
        run(tmp_path / 'run', load_from=str(path), resume=True)
