"""Non-finite steps in mmengine's real Runner."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import faulty  # noqa: F401  registers
import pytest
import torch
from helpers import NORMALIZATION, mldr, resnet, run_ranks, runner_config, vit
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.hooks import non_finite
from mldr_kd_mm.registry import OPTIM_WRAPPERS
from mldr_kd_mm.utils.dist import DeferredAllReduce

WORKER = Path(__file__).with_name('rank_worker.py')
SGD = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.1)
ADAMW = dict(type='AdamW', lr=1e-3, weight_decay=0.1)


@OPTIM_WRAPPERS.register_module()
class ScalingOptimWrapper(OptimWrapper):
    """Imitates mmengine's AmpOptimWrapper, which does not run on a CPU."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=scale)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


class Snapshots(Hook):
    """Records the state before each step and after the last one."""

    priority = 'VERY_LOW'

    def __init__(self):
        self.states = []
        self.samples = []
        self.without_gradient = []

    def before_train(self, runner):
        runner.optim_wrapper.optimizer.register_step_post_hook(self.after_step)

    def after_step(self, optimizer, args, kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group['params']]
        if all(gradient is None for gradient in gradients):
            self.without_gradient.append(len(self.states) - 1)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        state = dict(model=runner.model.state_dict(), optimizer=runner.optim_wrapper.state_dict())
        self.states.append(copy.deepcopy(state))
        if data_batch is not None:
            self.samples.append([sample.sample_idx for sample in data_batch['data_samples']])

    def after_train(self, runner):
        self.before_train_iter(runner, 0)

    def unchanged(self):
        """Return the steps, counted from 0, that changed nothing."""
        pairs = zip(self.states, self.states[1:], strict=False)
        return [step for step, (before, after) in enumerate(pairs) if is_same(before, after)]


def is_same(a, b):
    """Return whether nested states are bitwise equal; NaN is never equal."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(is_same, a, b))
    return a == b


def classifier(**faults):
    """Return the config of a classifier that is not a Distiller."""
    return resnet(data_preprocessor=dict(NORMALIZATION)) | dict(type='FaultyClassifier', **faults)


def configure(model, work_dir, spoil=(), max_in_a_row=10, hook=True, **kwargs):
    """Return the config of a run with the hook, of two epochs with four steps each."""
    hooks = dict(logger=dict(type='LoggerHook', interval=1))
    hooks |= dict(non_finite=dict(type='NonFiniteHook', max_in_a_row=max_in_a_row)) if hook else {}
    hooks |= kwargs.pop('hooks', {})
    kwargs = dict(max_epochs=2, optim_wrapper=dict(optimizer=SGD)) | kwargs
    config = runner_config(model, work_dir, default_hooks=hooks, **kwargs)
    pipeline = [dict(type='Spoil', indices=list(spoil)), dict(type='PackInputs')]
    config['train_dataloader']['dataset']['pipeline'] = pipeline
    return copy.deepcopy(config)


def train(*args, **kwargs):
    runner = Runner.from_cfg(Config(configure(*args, **kwargs)))
    snapshots = Snapshots()
    runner.register_hook(snapshots)
    runner.train()
    return runner, snapshots


def skips(work_dir):
    """Return the log lines about skipped steps, without the time."""
    lines = [line for path in sorted(work_dir.glob('*/*.log')) for line in path.open()]
    return [line.split(' - ')[-1].strip() for line in lines if 'step skipped' in line]


def samples(line):
    """Return the sample indices in such a line."""
    return [int(index) for index in re.search('samples ([0-9, ]+)', line)[1].split(', ')]


def test_skipped_step_changes_nothing(tmp_path):
    runner, snapshots = train(classifier(loss=[2], gradient=[5]), tmp_path / 'run')
    assert snapshots.unchanged() == [2, 5]
    loss, gradient = skips(tmp_path / 'run')
    assert [loss, gradient] == [
        f'Iter(train) [{step + 1}]: step skipped, not finite: {what}; '
        f'samples {", ".join(map(str, snapshots.samples[step]))}; 1 in a row, {total} in all'
        for step, what, total in ((2, 'loss_second', 1), (5, 'the gradient', 2))
    ]


@pytest.mark.parametrize('optimizer', [SGD, ADAMW], ids=['SGD', 'AdamW'])
@pytest.mark.parametrize('fused', [False, True], ids=['', 'fused'])
def test_any_optimizer(tmp_path, optimizer, fused):
    # Skip the first step, when an optimizer has no state yet, and two consecutive later steps.
    model = classifier(loss=[0, 3], gradient=[4])
    optimizer = optimizer | dict(fused=fused)
    runner, snapshots = train(model, tmp_path / 'run', optim_wrapper=dict(optimizer=optimizer))
    assert snapshots.unchanged() == [0, 3, 4]
    # A fused optimizer skips on the device, except for its first step.
    assert snapshots.without_gradient == ([0] if fused else [0, 3, 4])
    assert [line[-22:] for line in skips(tmp_path / 'run')] == [
        '; 1 in a row, 1 in all',
        '; 1 in a row, 2 in all',
        '; 2 in a row, 3 in all',
    ]
    assert not hasattr(runner.optim_wrapper.optimizer, 'found_inf')


class LateAllReduce(DeferredAllReduce):
    """A DeferredAllReduce that returns its result on the CPU as late as on a GPU."""

    def reduce(self, flags):
        self._pending.append(super().reduce(flags))
        return self._pending.popleft() if len(self._pending) > self.lag else None


def test_flags_that_come_late(tmp_path, monkeypatch):
    monkeypatch.setattr(non_finite, 'DeferredAllReduce', LateAllReduce)
    model = classifier(loss=[1, 7], gradient=[6])
    _, snapshots = train(model, tmp_path / 'run')
    assert snapshots.unchanged() == [1, 6, 7]
    lines = skips(tmp_path / 'run')
    assert [line[: line.index(',')] for line in lines] == [
        f'Iter(train) [{step}]: step skipped' for step in (2, 7, 8)
    ]
    assert [samples(line) for line in lines] == [snapshots.samples[step] for step in (1, 6, 7)]


class Scales(Hook):
    """Scales the images of a step so far that their variance overflows, but no loss."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2:
            data_batch['inputs'] = [image.float() * 1e20 for image in data_batch['inputs']]


@pytest.mark.parametrize('scaled', [False, True], ids=['', 'GradScaler'])
def test_statistics_that_are_not_finite(tmp_path, scaled):
    wrapper = dict(type='ScalingOptimWrapper', scale=1.0) if scaled else {}
    config = configure(classifier(), tmp_path / 'run', optim_wrapper=wrapper | dict(optimizer=SGD))
    runner = Runner.from_cfg(Config(config))
    snapshots = Snapshots()
    runner.register_hook(Scales())
    runner.register_hook(snapshots)
    runner.train()
    assert snapshots.unchanged() == [2]
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    (line,) = skips(tmp_path / 'run')
    assert 'not finite: BatchNorm statistics' in line
    assert samples(line) == snapshots.samples[2]


def test_image_that_is_not_finite(tmp_path):
    """The image would make BatchNorm's statistics non-finite, too."""
    runner, snapshots = train(classifier(), tmp_path / 'run', spoil=[17])
    unchanged = snapshots.unchanged()
    assert len(unchanged) == 2
    lines = skips(tmp_path / 'run')
    assert all('not finite: loss, loss_second; samples' in line for line in lines)
    assert all(' 17' in line for line in lines)
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


class ReplacesStatistics(Hook):
    """Gives each BatchNorm new tensors after every epoch, as mmpretrain's PreciseBNHook does."""

    def after_train_epoch(self, runner):
        for module in runner.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean = module.running_mean.clone()
                module.running_var = module.running_var.clone()


def test_statistics_that_a_hook_replaces(tmp_path):
    runner = Runner.from_cfg(Config(configure(classifier(), tmp_path / 'run', spoil=[17])))
    runner.register_hook(ReplacesStatistics())
    runner.train()
    assert len(skips(tmp_path / 'run')) == 2
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


def test_image_that_is_not_finite_for_teacher_and_student(tmp_path):
    runner, snapshots = train(mldr(), tmp_path / 'run', spoil=[17])
    assert len(snapshots.unchanged()) == 2
    lines = skips(tmp_path / 'run')
    assert len(lines) == 2
    assert all('loss_dfra_logits' in line and ' 17' in line for line in lines)
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())


def test_healthy_run_is_the_same_without_it(tmp_path):
    with_hook, _ = train(mldr(student=vit()), tmp_path / 'with')
    without, _ = train(mldr(student=vit()), tmp_path / 'without', hook=False)
    assert is_same(with_hook.model.state_dict(), without.model.state_dict())
    assert skips(tmp_path / 'with') == []


def test_accumulation_skips_the_whole_update(tmp_path):
    wrapper = dict(optimizer=SGD, accumulative_counts=2)
    model = classifier(loss=[2], gradient=[5])
    runner, snapshots = train(model, tmp_path / 'run', optim_wrapper=wrapper)
    # BatchNorm's statistics also change between updates.
    updates = snapshots.states[::2]
    assert [is_same(a, b) for a, b in zip(updates, updates[1:], strict=False)] == [
        False,
        True,
        True,
        False,
    ]
    loss, gradient = skips(tmp_path / 'run')
    assert loss.startswith('Iter(train) [4]: ') and len(samples(loss)) == 10
    assert gradient.startswith('Iter(train) [6]: ') and len(samples(gradient)) == 20


def test_too_many_in_a_row(tmp_path):
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    # One single step, and all steps from the second epoch on.
    model = classifier(loss=[1, *range(4, 8)])
    with pytest.raises(ConfigError) as error:
        train(model, tmp_path / 'run', max_in_a_row=3, hooks=hooks)
    message = str(error.value)
    assert message.startswith(
        'NonFiniteHook: max_in_a_row=3 steps were skipped up to iteration 7, not finite: '
        'loss_second; samples '
    )
    rate = SGD['lr'] / 3
    assert (
        f'if the losses grew before, resume from {tmp_path / "run" / "epoch_1.pth"} with a lower '
        f'learning rate, --lr {rate:.2g}, and if that fails with --clip-grad 5; ' in message
    )
    assert '\n' not in message


def test_too_many_before_there_is_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match='before, start again with a lower learning rate, --lr '):
        train(classifier(loss=range(8)), tmp_path / 'run', max_in_a_row=3)


def test_count_survives_a_resume(tmp_path):
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    train(classifier(loss=[1]), tmp_path / 'run', max_epochs=1, hooks=hooks)
    train(classifier(loss=[0]), tmp_path / 'run', hooks=hooks, resume=True)
    assert [line[-8:] for line in skips(tmp_path / 'run')] == ['1 in all', '2 in all']
    scalars = [
        json.loads(line)
        for path in sorted((tmp_path / 'run').glob('*/vis_data/scalars.json'))
        for line in path.open()
    ]
    found = [(s['step'], s['skipped_steps']) for s in scalars if 'skipped_steps' in s]
    assert found == [(2, 1), (5, 2)]


def test_averaged_weights_stay_finite(tmp_path):
    custom = [dict(type='EMAHook')]
    runner, _ = train(classifier(), tmp_path / 'run', spoil=[17], custom_hooks=custom)
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    assert all(value.isfinite().all() for value in ema.ema_model.state_dict().values())
    assert len(skips(tmp_path / 'run')) == 2


def test_indices_are_those_of_the_whole_data_set(tmp_path):
    """Each part of a concatenated data set numbers its samples from 0."""
    config = configure(classifier(loss=[2]), tmp_path / 'run')
    loader = config['train_dataloader']
    loader['dataset'] = dict(type='ConcatDataset', datasets=[loader['dataset']] * 2)
    loader['sampler']['type'] = 'ViewSampler'
    runner = Runner.from_cfg(Config(config))
    runner.train()
    (line,) = skips(tmp_path / 'run')
    runner.train_dataloader.sampler.set_epoch(0)
    assert samples(line) == list(runner.train_dataloader.sampler)[20:30]


def test_samples_without_an_index(tmp_path):
    config = configure(classifier(loss=[2]), tmp_path / 'run')
    config['train_dataloader']['dataset']['pipeline'][-1]['meta_keys'] = ()
    Runner.from_cfg(Config(config)).train()
    (line,) = skips(tmp_path / 'run')
    assert 'loss_second; samples unknown; 1 in a row' in line


def test_several_optimizers_are_left_alone(tmp_path):
    runner = Runner.from_cfg(Config(configure(classifier(), tmp_path / 'run')))
    runner.optim_wrapper = OptimWrapperDict(
        only=OptimWrapper(torch.optim.SGD(runner.model.parameters(), lr=0.01))
    )
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, non_finite.NonFiniteHook))
    hook.before_train(runner)
    hook.after_train_iter(runner, 0)
    hook.after_train(runner)
    (path,) = (tmp_path / 'run').glob('*/*.log')
    assert 'NonFiniteHook does nothing: the run has several optimizers' in path.read_text()


class RunsACopy(Hook):
    """Runs a copy of the model on images that are not finite."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        data = runner.model.data_preprocessor(data_batch, True)
        data['inputs'] = data['inputs'] * torch.nan
        copy.deepcopy(runner.model)(**data, mode='loss')


def test_copies_of_the_model_are_left_alone(tmp_path):
    runner = Runner.from_cfg(Config(configure(classifier(), tmp_path / 'run', max_epochs=1)))
    runner.register_hook(RunsACopy())
    runner.train()
    assert skips(tmp_path / 'run') == []


@pytest.mark.slow
def test_compiled_run(tmp_path):
    compiled = dict(backend='eager')
    runner, snapshots = train(classifier(), tmp_path / 'run', spoil=[17], compile=compiled)
    assert len(snapshots.unchanged()) == len(skips(tmp_path / 'run')) == 2


@pytest.mark.parametrize('fused', [False, True], ids=['', 'fused'])
@pytest.mark.parametrize('scale', [1024.0, torch.inf])
def test_overflow_of_scaled_gradients_is_none_of_its_affairs(tmp_path, fused, scale):
    wrapper = dict(type='ScalingOptimWrapper', scale=scale, optimizer=SGD | dict(fused=fused))
    model = classifier(loss=[3])
    _, snapshots = train(model, tmp_path / 'run', max_in_a_row=2, optim_wrapper=wrapper)
    # No gradient is finite with an infinite scale, but BatchNorm's statistics still change.
    assert snapshots.unchanged() == [3]
    first, last = (snapshots.states[i]['model']['head.fc.weight'] for i in (0, -1))
    assert is_same(first, last) == (scale == torch.inf)
    (line,) = skips(tmp_path / 'run')
    assert line.startswith('Iter(train) [4]: step skipped, not finite: loss_second; ')


def in_two_processes(config, folder):
    """Train in two processes; return the results of each."""
    (folder / 'config.json').write_text(json.dumps(config))
    run_ranks(*[(WORKER, rank, 2, folder) for rank in range(2)])
    return [torch.load(folder / f'found{rank}.pt') for rank in range(2)]


def test_processes_skip_together(tmp_path):
    model = classifier(loss=[1], gradient=[2], ranks=[1])
    config = configure(model, tmp_path / 'run', max_epochs=2)
    states = [found['states'] for found in in_two_processes(config, tmp_path)]
    for own in states:
        pairs = zip(own, own[1:], strict=False)
        assert [is_same(a, b) for a, b in pairs] == [False, True, True, False]
    weights = [{k: v for k, v in s[-1].items() if 'running' not in k} for s in states]
    assert is_same(*weights)
    loss, gradient = skips(tmp_path / 'run')
    # The loss belongs to one process, the gradient to both.
    assert loss.startswith('Iter(train) [2]: ') and len(samples(loss)) == 10
    assert gradient.startswith('Iter(train) [3]: ') and len(samples(gradient)) == 20


def test_processes_stop_together(tmp_path):
    model = classifier(loss=list(range(8)), ranks=[1])
    config = configure(model, tmp_path / 'run', max_in_a_row=2)
    first, second = in_two_processes(config, tmp_path)
    assert first['error'] == second['error']
    assert 'up to iteration 2, not finite: loss_second; samples' in first['error']


@pytest.mark.parametrize(('size', 'steps'), [(41, '3, 2'), (39, None)])
def test_processes_with_different_numbers_of_samples(tmp_path, size, steps):
    """Last batches may differ in size, but different numbers of batches would deadlock."""
    config = configure(classifier(loss=[1]), tmp_path / 'run', max_epochs=1)
    loader = config['train_dataloader']
    loader['dataset'] |= dict(subset=None, indices=size)
    loader['sampler']['round_up'] = False
    errors = [found['error'] for found in in_two_processes(config, tmp_path)]
    if steps is None:
        assert errors == [None, None]
        assert len(skips(tmp_path / 'run')) == 1
    else:
        assert errors[0] == errors[1]
        assert errors[0].startswith(f'train_dataloader: the processes take {steps} steps, ')
