"""The teacher cache in mmengine's real Runner."""

from __future__ import annotations

import copy
import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import NORMALIZATION, mldr, resnet, run_ranks, runner_config, vit
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import FUNCTIONS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.engine import SwitchRecipeHook

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.hooks import TeacherCacheHook
from mldr_kd_mm.engine.hooks.teacher_cache import (
    _check_recipes,
    _data,
    _some_items,
    loss_changes,
)
from mldr_kd_mm.models.data_preprocessor import ViewDataPreprocessor
from mldr_kd_mm.models.distillers.encodings import TopKLogits
from mldr_kd_mm.registry import DATASETS, MODELS
from mldr_kd_mm.utils.nested import iter_differences

PIPELINE = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand'),
    dict(type='PackInputs'),
]
LOSSES = [
    dict(loss=dict(type='KDLoss'), name='kd'),
    dict(loss=dict(type='RKDLoss'), student='feature', teacher='feature', name='rkd'),
    dict(loss=dict(type='FitNetLoss'), student=['stage4'], teacher=['stage4'], name='fitnet'),
]
MIXING = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
WORKER = Path(__file__).with_name('teacher_cache_worker.py')


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
    """Return the path of teacher weights that all runs share."""
    init_default_scope('mldr_kd_mm')
    torch.manual_seed(0)
    model = MODELS.build(resnet(data_preprocessor=dict(NORMALIZATION)))
    model.init_weights()
    path = tmp_path_factory.mktemp('teacher') / 'teacher.pth'
    torch.save(model.state_dict(), path)
    return str(path)


def configure(work_dir, teacher, cache=None, student=None, losses=LOSSES, dtype='fp32', **kwargs):
    """Return the config of a run of four epochs and two views, with or without a cache."""
    kwargs = dict(max_epochs=4) | kwargs
    model = mldr(
        teacher=resnet(),
        student=student or resnet(),
        teacher_checkpoint=teacher,
        losses=losses,
        neck=None,
    )
    hook = dict(type='TeacherCacheHook', dir=cache and str(cache), dtype=dtype)
    hooks = dict(
        logger=dict(type='LoggerHook', interval=1),
        checkpoint=dict(type='CheckpointHook', interval=1),
        teacher_cache=hook,
    )
    off = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)
    config = runner_config(model, work_dir, default_hooks=hooks, **off, **kwargs)
    config['train_dataloader'].update(
        sampler=dict(type='ViewSampler', views=2), drop_last=True, batch_size=8
    )
    config['train_dataloader']['dataset']['pipeline'] = PIPELINE
    return copy.deepcopy(config)


class Run:
    """A run, its weights and the number of times that its teacher ran."""

    def __init__(self, config):
        self.runner = Runner.from_cfg(Config(config))
        self.calls = 0
        self.runner.model.teacher.model.register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1

    def open_cache(self):
        """Run only the hook's part before training."""
        self.runner._train_loop = self.runner.build_train_loop(self.runner._train_loop)
        (hook,) = (hook for hook in self.runner.hooks if isinstance(hook, TeacherCacheHook))
        hook.before_train(self.runner)
        return self

    @property
    def weights(self):
        return self.runner.model.state_dict()


def train(*args, **kwargs):
    run = Run(configure(*args, **kwargs))
    run.runner.train()
    return run


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], **(tolerance or dict(rtol=0, atol=0)), msg=name
        )


@pytest.fixture(scope='module')
def plain(tmp_path_factory, teacher):
    """Return the weights after a run without a cache."""
    init_default_scope('mldr_kd_mm')
    run = train(tmp_path_factory.mktemp('plain') / 'run', teacher)
    assert run.calls == 4 * 5
    return run.weights


@pytest.fixture(scope='module')
def recorded(tmp_path_factory, teacher):
    """Return the run that recorded a cache, and the cache."""
    init_default_scope('mldr_kd_mm')
    folder = tmp_path_factory.mktemp('recorded')
    return train(folder / 'run', teacher, folder / 'cache'), folder / 'cache'


# Opening a cache runs the teacher on one image, for the shapes.
OPENING = 1


def test_recording_changes_nothing(recorded, plain):
    run, _ = recorded
    assert_same(run.weights, plain)
    assert run.calls == OPENING + 2 * 5


def test_a_second_run_reads(recorded, plain, teacher, tmp_path):
    run = train(tmp_path / 'run', teacher, recorded[1])
    assert_same(run.weights, plain)
    assert run.calls == OPENING


def test_another_student_and_method_read(recorded, teacher, tmp_path):
    losses = [dict(loss=dict(type='DKDLoss'), name='dkd')]
    args = dict(student=vit(), losses=losses, max_epochs=2)
    run = train(tmp_path / 'run', teacher, recorded[1], **args)
    assert run.calls == OPENING
    assert_same(run.weights, train(tmp_path / 'plain', teacher, **args).weights)


def test_half_precision(teacher, tmp_path):
    arguments = dict(losses=LOSSES[2:], max_epochs=2)
    exact = train(tmp_path / 'exact', teacher, **arguments)
    arguments |= dict(cache=tmp_path / 'cache', dtype='fp16')
    one = train(tmp_path / 'one', teacher, **arguments)
    two = train(tmp_path / 'two', teacher, **arguments)
    assert two.calls == OPENING
    assert_same(one.weights, two.weights)
    assert_same(one.weights, exact.weights, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ('processes', 'images'),
    [
        pytest.param(1, 40, marks=pytest.mark.slow),
        pytest.param(2, 40, marks=pytest.mark.slow),
        (2, 21),
    ],
)
def test_mixed_batches(teacher, tmp_path, processes, images):
    found = {}
    for name, cache in (('plain', None), ('one', 'cache'), ('two', 'cache')):
        config = configure(
            tmp_path / name,
            teacher,
            cache and tmp_path / cache,
            student=resnet(train_cfg=MIXING),
            max_epochs=3,
        )
        config['train_dataloader'].update(batch_size=4, drop_last=False)
        if images == 21:
            config['train_dataloader']['dataset']['subset'] = dict(labels=[1, 2, 3], per_class=7)
        if processes > 1:
            found[name] = in_processes(config, tmp_path, processes)
        else:
            run = Run(config)
            run.runner.train()
            found[name] = dict(weights=run.weights, calls=run.calls)
    assert_same(found['one']['weights'], found['plain']['weights'])
    assert_same(found['two']['weights'], found['plain']['weights'])
    if images == 21:
        # Both processes mix one of the images into their own batches, so the teacher must run.
        assert OPENING < found['two']['calls'] <= found['one']['calls']
    else:
        steps = 10 // processes
        assert found['plain']['calls'] == 3 * steps
        assert found['one']['calls'] == OPENING + 2 * steps
        assert found['two']['calls'] == OPENING


def in_processes(config, folder, processes, kill_after=0):
    """Train in separate processes; return the result of the last one."""
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'store').unlink(missing_ok=True)
    ranks = range(processes)
    commands = [(WORKER, rank, processes, folder, kill_after) for rank in ranks]
    run_ranks(*commands, code=-signal.SIGKILL if kill_after else 0)
    return None if kill_after else torch.load(folder / f'found{processes - 1}.pt')


def test_killed_while_it_records(teacher, plain, tmp_path):
    config = configure(tmp_path / 'killed', teacher, tmp_path / 'cache')
    in_processes(config, tmp_path, 1, kill_after=7)
    run = train(tmp_path / 'run', teacher, tmp_path / 'cache')
    assert_same(run.weights, plain)
    assert run.calls == OPENING + 2 * 5 - 7


def test_a_resumed_run(teacher, plain, tmp_path, monkeypatch):
    # With torch's default of weights_only=True the original mmengine cannot read its checkpoints.
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    train(tmp_path / 'first', teacher, tmp_path / 'cache', max_epochs=1)
    checkpoint = str(tmp_path / 'first/epoch_1.pth')
    resume = dict(resume=True, load_from=checkpoint)
    run = train(tmp_path / 'second', teacher, tmp_path / 'cache', **resume)
    assert run.calls == OPENING + 5
    assert_same(run.weights, plain)


def other_teacher(config, folder):
    state = torch.load(config['model']['teacher_checkpoint'])
    state['head.fc.bias'][0] += 1
    torch.save(state, folder / 'other.pth')
    config['model']['teacher_checkpoint'] = str(folder / 'other.pth')


def set_at(path, value):
    """Return a function that sets a config field by its dotted path."""

    def change(config, folder):
        *names, last = path.split('.')
        for name in names:
            config = config[int(name) if isinstance(config, list) else name]
        config[int(last) if isinstance(config, list) else last] = value

    return change


@MODELS.register_module()
class FlippingPreprocessor(ViewDataPreprocessor):
    """Flips images on the device at random."""

    def forward(self, data, training=False):
        data = super().forward(data, training)
        return data | dict(inputs=data['inputs'].flip(-1)) if torch.rand(()) < 0.5 else data


@FUNCTIONS.register_module()
def flipping_collate(items):
    """Flip a batch of images."""
    batch = default_collate(items)
    return batch | dict(inputs=batch['inputs'].flip(-1))


DATA = 'train_dataloader.dataset'
OTHER_TAPS = dict(stage4='backbone.layer3')
THEIRS = dict(type='mmpretrain.ClsDataPreprocessor')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (other_teacher, "teacher.weights was '[0-9a-f]{16}', is "),
        (
            set_at('model.teacher.backbone.norm_cfg', dict(type='BN', eps=0.1)),
            r'backbone\.norm_cfg',
        ),
        (set_at('model.teacher_input_size', [3, 16, 16]), 'teacher.input_size was None, is '),
        (set_at('randomness.seed', 1), 'seed was 0, is 1; images was '),
        (set_at('train_dataloader.sampler.views', 3), 'views was 2, is 3'),
        (set_at(f'{DATA}.subset.per_class', 5), r'samples was 40, is 50; .*per_class was 4, is 5'),
        (set_at(f'{DATA}.subset.labels', list(range(9, -1, -1))), r'subset\.labels'),
        (set_at(f'{DATA}.pipeline.0.padding', 2), r'dataset\.pipeline\.0\.padding was 4, is 2'),
        (set_at('default_hooks.teacher_cache.dtype', 'fp16'), "dtype was 'fp32', is 'fp16'"),
        (set_at('model.data_preprocessor.to_rgb', True), 'normalization.student.to_rgb was False'),
        (
            set_at('model.teacher.data_preprocessor', dict(mean=[0.0] * 3)),
            r'normalization\.teacher\.mean\.0 was 127\.0, is 0\.0',
        ),
        (set_at('model.student.train_cfg', MIXING), "mixing was None, is {'augments': "),
        (
            set_at('model.teacher_recorder', dict(type='FeatureRecorder', taps=OTHER_TAPS)),
            "outputs.stage4.tap was 'backbone.layer4', is 'backbone.layer3'; outputs.stage4.shape",
        ),
    ],
)
def test_says_what_differs(recorded, teacher, tmp_path, change, message):
    config = configure(tmp_path / 'run', teacher, recorded[1])
    change(config, tmp_path)
    run = Run(config)
    with pytest.raises(ConfigError, match=f'was recorded with other settings: .*{message}'):
        run.open_cache()


def test_other_images_where_none_is_sampled(tmp_path):
    """The list may move with its images; a changed order of the images is another data set."""

    def facts(folder, *names):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).touch()
        (folder / 'list.txt').write_text('\n'.join(names))
        config = dict(type='UnlabeledFolder', ann_file=str(folder / 'list.txt'))
        init_default_scope('mldr_kd_mm')
        sampler = SimpleNamespace(views=2, seed=0)
        loader = SimpleNamespace(
            dataset=DATASETS.build(config), batch_sampler=SimpleNamespace(sampler=sampler)
        )
        return _data(loader, [], dict(dataset=config))

    names = [f'{number}.png' for number in range(4)]
    known = facts(tmp_path / 'one', *names)
    assert facts(tmp_path / 'two', *names) == known
    for others in (names[::-1], ['00.png', *names[:3]]):
        ((field, *_),) = iter_differences(known, facts(tmp_path / 'one', *others))
        assert field == 'sample_names'


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        ('train_dataloader.batch_size', 4),
        ('train_dataloader.num_workers', 2),
        ('train_dataloader.collate_fn', dict(type='pseudo_collate')),
        ('model.student.data_preprocessor', THEIRS),
        ('model.losses', LOSSES[:1]),
        ('train_cfg.max_epochs', 7),
    ],
)
def test_is_the_same_cache(recorded, teacher, tmp_path, path, value):
    config = configure(tmp_path / 'run', teacher, recorded[1])
    set_at(path, value)(config, tmp_path)
    assert Run(config).open_cache().calls == OPENING


def test_mixing_depends_on_the_batch(teacher, tmp_path):
    student = resnet(train_cfg=MIXING)
    config = configure(tmp_path / 'one', teacher, tmp_path / 'cache', student)
    Run(config).open_cache()
    config = configure(tmp_path / 'two', teacher, tmp_path / 'cache', student)
    config['train_dataloader']['batch_size'] = 4
    with pytest.raises(ConfigError, match='mixing.batch_size was 8, is 4'):
        Run(config).open_cache()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            set_at('train_dataloader.sampler', dict(type='DefaultSampler')),
            r"is a DefaultSampler with views=None: must be dict\(type='ViewSampler', views=V\)",
        ),
        (
            set_at('train_dataloader.sampler', dict(type='ViewSampler')),
            'sampler is a ViewSampler with views=None: must be',
        ),
        (set_at('default_hooks.teacher_cache.dtype', 'int8'), "dtype='int8': must be 'fp32' or"),
        (set_at('train_dataloader.sampler.views', 10**9), 'needs .* TB, the disk has'),
        (
            set_at('model.student', resnet(train_cfg=MIXING, data_preprocessor=THEIRS)),
            "data_preprocessor.type='ClsDataPreprocessor' mixes at random: must be 'mldr_kd_mm",
        ),
        (
            set_at('model.data_preprocessor.type', 'FlippingPreprocessor'),
            "data_preprocessor.type='FlippingPreprocessor' has a forward of its own, which may ",
        ),
        (
            set_at('train_dataloader.collate_fn', dict(type='flipping_collate')),
            r'train_dataloader\.collate_fn=flipping_collate may change the images at random: must',
        ),
    ],
)
def test_refuses(teacher, tmp_path, change, message):
    config = configure(tmp_path / 'run', teacher, tmp_path / 'cache')
    change(config, tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        Run(config).open_cache()
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'cache').exists()


@pytest.mark.parametrize(
    ('change', 'is_refused'),
    [
        (dict(batch_augments=None), True),
        (dict(train_pipeline=PIPELINE), True),
        (dict(loss=dict(type='CrossEntropyLoss')), False),
    ],
    ids=str,
)
def test_a_recipe_that_changes_the_images(change, is_refused):
    init_default_scope('mldr_kd_mm')
    hook = SwitchRecipeHook([dict(action_epoch=2, **change)])
    if not is_refused:
        return _check_recipes([hook])
    with pytest.raises(
        ConfigError, match=f'^teacher_cache: SwitchRecipeHook changes {[*change][0]},'
    ):
        _check_recipes([hook])


def test_a_batch_without_views(recorded, teacher, tmp_path):
    run = Run(configure(tmp_path / 'run', teacher, recorded[1])).open_cache()
    dataset = run.runner.train_dataloader.dataset
    items = [dataset[i] for i in range(4)]
    data = dict(
        inputs=torch.stack([item['inputs'] for item in items]),
        data_samples=[item['data_samples'] for item in items],
    )
    model = run.runner.model
    with pytest.raises(ConfigError, match='the batch has no views; train_dataloader.sampler must'):
        model(**model.data_preprocessor(data, True), mode='loss')


def test_is_left_out_for_other_models(tmp_path):
    config = configure(tmp_path / 'run', None, tmp_path / 'cache', max_epochs=1)
    config['model'] = resnet(data_preprocessor=dict(NORMALIZATION))
    Runner.from_cfg(Config(config)).train()
    assert not (tmp_path / 'cache').exists()


class TestTopK:
    """A cache of the largest logits."""

    LOSSES = [dict(loss=dict(type='KDLoss', temperature=1.0), name='kd'), LOSSES[1]]

    def configure(self, folder, teacher, name='run', losses=LOSSES, **settings):
        config = configure(folder / name, teacher, folder / 'cache', losses=losses, max_epochs=3)
        config['default_hooks']['teacher_cache'] |= dict(top_k=4, max_change=0.9) | settings
        return config

    def test_records_what_it_reads(self, teacher, tmp_path):
        """Both runs see the same sparse logits; the feature is stored whole."""
        runs = []
        for name in 'ab':
            runs.append(Run(self.configure(tmp_path, teacher, name)))
            runs[-1].runner.train()
        first, second = runs
        # The losses are computed with exact and with sparse logits first.
        assert (first.calls, second.calls) == (3 * OPENING + 2 * 5, 3 * OPENING)
        assert_same(first.weights, second.weights)
        sizes = {path.name: path.stat().st_size for path in (tmp_path / 'cache').glob('*.bin')}
        assert sizes == {'logits.bin': 2 * 40 * (5 * 4 + 4 * 2), 'feature.bin': 2 * 40 * 64 * 4}
        (log,) = (tmp_path / 'a').glob('*/*.log')
        text = log.read_text()
        assert 'top_k=4: changes losses of 16 images: kd ' in text
        said = re.search(
            r'teacher.logits: 2.56 kB instead of 3.52 kB; of 80 samples, (\S+) % of', text
        )
        assert 0 < float(said[1]) < 30
        (log,) = (tmp_path / 'b').glob('*/*.log')
        assert 'instead of' not in log.read_text()  # nothing was recorded

    @pytest.mark.parametrize(
        ('settings', 'message'),
        [
            (dict(max_change=1e-4), r'top_k=4: changes losses by more than max_change=0.0001: kd '),
            (dict(top_k=10), 'top_k=10: must be below the number of classes, 10'),
            (dict(losses=LOSSES[1:]), "top_k=4: must be None, as no loss reads the teacher's logi"),
            (dict(top_k=0), 'teacher_cache: top_k=0: must be a positive integer'),
            (dict(max_change=-1), 'teacher_cache: max_change=-1: must be a positive number'),
        ],
        ids=str,
    )
    def test_refuses(self, teacher, tmp_path, settings, message):
        with pytest.raises(ConfigError, match=message):
            Run(self.configure(tmp_path, teacher, **settings)).open_cache()
        assert not (tmp_path / 'cache').exists()

    def test_is_another_cache(self, recorded, teacher, tmp_path):
        config = self.configure(tmp_path, teacher, dir=str(recorded[1]))
        with pytest.raises(ConfigError, match=r'outputs\.logits\.top_k'):
            Run(config).open_cache()

    def test_changes_of_losses(self, teacher, tmp_path):
        """Without a temperature the change is small, with one it is not; only logits count."""
        losses = [dict(loss=dict(type='KDLoss', temperature=t), name=f'kd{t}') for t in (1.0, 8.0)]
        run = Run(self.configure(tmp_path, teacher, losses=[*losses, *LOSSES[1:]]))
        loader = run.runner.build_dataloader(run.runner.cfg.train_dataloader, seed=0)
        model, items = run.runner.model, _some_items(loader)
        changes = [
            loss_changes(model, items, dict(teacher=TopKLogits((10,), k, np.dtype(np.float32))))
            for k in (9, 4)
        ]
        assert [*changes[0]] == ['kd1.0', 'kd8.0']
        # Nine logits and the mass of the others are all ten.
        assert max(changes[0].values()) < 1e-3 < min(changes[1].values())


def test_shipped_configs_need_only_a_folder_and_a_number():
    cfg = Config.fromfile(Path(__file__).parents[3] / 'configs/quickstart/mldr.py')
    assert cfg.default_hooks.teacher_cache == dict(type='TeacherCacheHook', dir=None)
    assert cfg.train_dataloader.sampler == dict(type='ViewSampler', shuffle=True)
