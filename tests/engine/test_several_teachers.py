"""Runs with two teachers: accuracies, caches, exact resume and two processes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import mldr, resnet, run_ranks, runner_config, vit
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mldr_kd_mm import ConfigError
from mldr_kd_mm.apis.info import describe
from mldr_kd_mm.apis.trial import teacher_file
from mldr_kd_mm.engine.hooks.teacher_cache import _some_items, loss_changes
from mldr_kd_mm.evaluation.logged_run import LoggedRun
from mldr_kd_mm.evaluation.observer import Observer
from mldr_kd_mm.models.distillers.encodings import TopKLogits
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.checkpoint import load_checkpoint

LOSSES = [
    dict(loss=dict(type='KDLoss'), name='kd'),
    dict(loss=dict(type='RKDLoss'), student='feature', teacher='teacher2.feature', name='rkd'),
]
# The second teacher has normalisation and images of its own.
SECOND = vit(img_size=24, data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3))
TOP1 = 'accuracy/top1'
WORKER = Path(__file__).parent / 'hooks/teacher_cache_worker.py'
STEPS, OPENING = 4, 2
"""Steps of an epoch, and runs of the teachers on one image when their caches are opened."""


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Return the paths of the weights of both teachers."""
    init_default_scope('mldr_kd_mm')
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('teachers')
    for name, config in (('one', resnet()), ('two', SECOND)):
        model = MODELS.build(copy.deepcopy(config))
        model.init_weights()
        torch.nn.init.normal_(
            [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1].weight
        )
        torch.save(model.state_dict(), folder / f'{name}.pth')
    return [str(folder / 'one.pth'), str(folder / 'two.pth')]


def configure(work_dir, files, cache=None, **kwargs):
    model = mldr(teacher=[resnet(), SECOND], teacher_checkpoint=files, losses=LOSSES, neck=None)
    hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(type='AtomicCheckpointHook', interval=1),
        exact_resume=dict(type='ExactResumeHook'),
        teacher_accuracy=dict(type='TeacherAccuracyHook'),
        teacher_cache=dict(type='TeacherCacheHook', dir=cache and str(cache)),
        chance=dict(type='ChanceHook'),
    )
    config = runner_config(model, work_dir, default_hooks=hooks, **(dict(max_epochs=3) | kwargs))
    config['train_dataloader']['sampler'] = dict(type='ViewSampler', views=2)
    config['train_dataloader']['dataset']['pipeline'] = [
        dict(type='RandomCrop', crop_size=32, padding=4),
        dict(type='PackInputs'),
    ]
    return copy.deepcopy(config)


def train(config):
    """Return the runner after training, and how often the teachers ran in training steps."""
    runner, calls = Runner.from_cfg(Config(config)), []
    for _, teacher, _ in runner.model.teachers:
        teacher.model.register_forward_hook(lambda module, args, _: calls.append(len(args[0])))
    runner.train()
    return runner, calls


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture(scope='module')
def plain(tmp_path_factory, files):
    init_default_scope('mldr_kd_mm')
    return train(configure(tmp_path_factory.mktemp('plain') / 'run', files))[0]


@pytest.fixture(scope='module')
def cached(tmp_path_factory, files):
    init_default_scope('mldr_kd_mm')
    folder = tmp_path_factory.mktemp('cached')
    off = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)
    return (*train(configure(folder / 'run', files, folder / 'cache', **off)), folder / 'cache')


def test_the_accuracy_of_each_and_of_both_is_measured_first(plain):
    metrics = plain.message_hub.runtime_info['teacher_metrics']
    assert [*metrics] == [f'teacher1/{TOP1}', f'teacher2/{TOP1}', TOP1]
    data = plain.val_dataloader
    scores, labels = {}, []
    model = plain.model.eval()
    for batch in data:
        batch = model.data_preprocessor(batch, False)
        labels += [int(sample.gt_label) for sample in batch['data_samples']]
        inputs = model.teacher(batch['inputs'], ['logits'])
        for name, values in inputs.items():
            scores.setdefault(name, []).append(values)
    for name, values in scores.items():
        right = (torch.cat(values).argmax(1) == torch.tensor(labels)).float().mean().item()
        label = name.removesuffix('logits').replace('.', '/')
        assert metrics[f'{label}{TOP1}'] == pytest.approx(100 * right, abs=1e-3)

    run = LoggedRun.read(Path(plain.work_dir), 'run')
    assert run.names('teacher') == [f'teacher{n}/{TOP1}' for n in (1, 2, '')]
    text = next(Path(plain.work_dir).glob('*/*.log')).read_text()
    for who in ('Teacher1', 'Teacher2', 'Mean of 2 teachers'):
        assert text.index(f'{who} on the validation set: {TOP1}') < text.index('Epoch(train)')
    facts = dict(describe(str(Path(plain.work_dir, 'epoch_3.pth'))))
    assert facts[f"teacher2's {TOP1}"] == f'{metrics[f"teacher2/{TOP1}"]:.2f}'
    assert facts[f"teacher's {TOP1}"] == f'{metrics[TOP1]:.2f}'


def test_a_report_observes_both(plain):
    run = LoggedRun.read(Path(plain.work_dir), 'run')
    model = run.build_model(run.checkpoint())
    observer = Observer(model)
    batch = model.data_preprocessor(next(iter(run.validation_batches(8))), False)
    observer.add(**batch)
    seen = observer.observations()
    expected = model.teacher(batch['inputs'], ['logits'])['logits']
    torch.testing.assert_close(torch.from_numpy(seen.teacher), expected)
    assert list(seen.teacher_stages)[::4] == ['teacher1.stage1', 'teacher2.stage1']
    assert len(run.teachers) == 2


def test_each_has_a_cache(cached, plain):
    runner, calls, folder = cached
    assert_same(runner.model.state_dict(), plain.model.state_dict())
    assert sorted(path.name for path in folder.iterdir()) == ['teacher1', 'teacher2']
    assert {path.name for path in (folder / 'teacher2').glob('*.bin')} == {
        'logits.bin',
        'feature.bin',
    }
    # Two views of each batch are recorded; the third epoch reads.
    assert len(calls) == OPENING + 2 * 2 * STEPS


def test_the_cache_of_one_is_that_of_a_run_with_it_alone(cached, files, tmp_path):
    config = configure(tmp_path / 'run', files, cached[2] / 'teacher1', max_epochs=1)
    config['model'].update(teacher=resnet(), teacher_checkpoint=files[0], losses=LOSSES[:1])
    config.update(val_dataloader=None, val_evaluator=None, val_cfg=None)
    assert len(train(config)[1]) == 1


def test_a_list_of_folders_must_have_one_for_each(cached, files, tmp_path):
    config = configure(tmp_path / 'run', files, max_epochs=1)
    config['default_hooks']['teacher_cache']['dir'] = [str(cached[2] / 'teacher1')]
    with pytest.raises(ConfigError, match='must have one folder for each of 2 teachers'):
        train(config)


def test_sparse_caches(files, tmp_path):
    """The logits of each are sparse, and so is what the losses read: one's, and the mean."""
    config = configure(tmp_path / 'run', files, tmp_path / 'cache', max_epochs=2)
    config.update(val_dataloader=None, val_evaluator=None, val_cfg=None)
    config['model']['losses'] = [
        dict(loss=dict(type='KDLoss', temperature=1.0), name='mean'),
        dict(loss=dict(type='KDLoss'), teacher='teacher2.logits', name='second'),
        dict(loss=dict(type='RKDLoss'), student='feature', teacher='teacher1.feature', name='rkd'),
    ]
    config['default_hooks']['teacher_cache'].update(top_k=4, max_change=1e9)
    runner, _ = train(config)
    text = next((tmp_path / 'run').glob('*/*.log')).read_text()
    for label in ('teacher1', 'teacher2'):
        size = (tmp_path / f'cache/{label}/logits.bin').stat().st_size
        assert size == 2 * 40 * (5 * 4 + 4 * 2)
        assert f'teacher_cache: {label}.logits: 2.56 kB instead of 3.52 kB' in text

    model, items = runner.model, _some_items(runner.train_dataloader)
    read = model.teacher.read(
        torch.stack([item['inputs'] for item in items]).float(),
        ['logits', 'teacher1.logits'],
        [item['data_samples'] for item in items],
    )
    assert (read['teacher1.logits'].sort(1).values.diff() == 0).sum(1).tolist() == [5] * len(items)
    for _, teacher, _ in model.teachers:
        teacher.cache = None
    form = TopKLogits((10,), 4, np.dtype(np.float32))
    for label, changed in (('teacher1', {'mean'}), ('teacher2', {'mean', 'second'})):
        changes = loss_changes(model, items, {label: form})
        assert {name for name, change in changes.items() if change > 1e-6} == changed
        assert 'rkd' not in changes


def test_a_benchmark_takes_one_teacher():
    with pytest.raises(ConfigError, match='model.teacher: is a list; the benchmark and the search'):
        teacher_file(dict(model=dict(teacher=[resnet(), SECOND])))


def test_exact_resume(plain, files, tmp_path):
    source = Path(plain.work_dir, 'epoch_1.pth')
    config = configure(tmp_path / 'run', files, resume=True, load_from=str(source))
    assert_same(train(config)[0].model.state_dict(), plain.model.state_dict())


def test_two_processes(plain, files, tmp_path):
    config = configure(tmp_path / 'run', files, tmp_path / 'cache', max_epochs=3)
    config['train_dataloader']['batch_size'] = 5
    (tmp_path / 'config.json').write_text(json.dumps(config))
    run_ranks(*((WORKER, rank, 2, tmp_path, 0) for rank in range(2)))
    one, two = (torch.load(tmp_path / f'found{rank}.pt') for rank in range(2))
    trained = [name for name, _ in plain.model.named_parameters()]
    for name in trained:
        assert torch.equal(one['weights'][name], two['weights'][name]), name
    hub = load_checkpoint(str(tmp_path / 'run/epoch_3.pth'))['message_hub']
    metrics = plain.message_hub.runtime_info['teacher_metrics']
    assert hub['runtime_info']['teacher_metrics'] == pytest.approx(metrics)
