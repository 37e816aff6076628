"""Data with which a run must not start, and the record of its split."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import NORMALIZATION, image_folder, mldr, resnet, train
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.hooks import CheckpointHook, IterTimerHook
from mmengine.registry import init_default_scope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner import TestLoop as Loop
from torch.utils.data import DataLoader, TensorDataset

from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.engine.hooks import DataCheckHook, data_check
from mldr_kd_mm.engine.hooks.data_check import (
    RECORD,
    check_disjoint,
    check_index,
    check_same_classes,
    check_teacher_classes,
    warn_of_checkpoints,
)
from mldr_kd_mm.models.distillers.teacher import Member
from mldr_kd_mm.registry import DATASETS, MODELS
from mldr_kd_mm.utils.errors import ConfigError


def dataset(size=6, classes=None):
    data = TensorDataset(torch.zeros(size))
    data.metainfo = dict(classes=classes and tuple(classes))
    return data


def check(
    train,
    val=None,
    resume=False,
    load_from=None,
    work_dir='.',
    max_iters=9,
    teacher=None,
    accumulative_counts=1,
    **config,
):
    """Call the hook as a run does; return its warnings."""
    warnings = []
    loader = train if isinstance(train, DataLoader) else DataLoader(train)
    runner = SimpleNamespace(
        train_dataloader=loader,
        val_dataloader=val and DataLoader(val),
        val_loop=val,
        max_iters=max_iters,
        train_loop=SimpleNamespace(max_iters=max_iters),
        param_schedulers=None,
        cfg=config,
        work_dir=str(work_dir),
        _resume=resume,
        _load_from=load_from,
        optim_wrapper=SimpleNamespace(_accumulative_counts=accumulative_counts),
    )
    taught = SimpleNamespace(checkpoint=teacher, classes=(), num_classes=None)
    runner.model = SimpleNamespace(teachers=[Member('teacher', taught, [])])
    runner.logger = SimpleNamespace(warning=warnings.append)
    DataCheckHook().before_train(runner)
    return warnings


class TestSteps:
    def test_a_run_without_steps_is_an_error(self, tmp_path):
        loader = dict(batch_size=64, drop_last=True)
        hooks = dict(data_check=dict(type='DataCheckHook'))
        model = resnet(data_preprocessor=dict(mean=[0.0] * 3, std=[9.0] * 3))
        with pytest.raises(ConfigError, match='no training step, as 40 images on 1 process'):
            train(model, tmp_path, default_hooks=hooks, train_dataloader=loader_of_digits(**loader))
        assert not list(tmp_path.glob('*.pth'))

    def test_no_epochs(self):
        with pytest.raises(ConfigError, match='train_cfg: the run has no training step'):
            check(dataset(), max_iters=0)

    def test_learning_rate_for_a_batch_that_does_not_exist(self):
        loader = DataLoader(dataset(6), batch_size=7)
        with pytest.raises(ConfigError, match='batch_size=7 is more than the 6 training images'):
            check(loader, auto_scale_lr=dict(enable=True, base_batch_size=2))
        check(loader, auto_scale_lr=dict(enable=False, base_batch_size=2))
        check(DataLoader(dataset(7), batch_size=7), auto_scale_lr=dict(enable=True))


class TestBatch:
    def test_of_the_recipe(self):
        for scaling in (dict(base_batch_size=4), dict(), dict(base_batch_size=64, enable=True)):
            assert check(DataLoader(dataset(8), batch_size=4), auto_scale_lr=scaling) == []

    @pytest.mark.parametrize(
        ('accumulative_counts', 'enable', 'message'),
        [
            (1, False, 'batch_size=4 x 1 rank: the learning rate is for 64 images a step, not 4; '),
            (8, False, 'x 8 accumulated steps: the learning rate is for 64 images a step, not 32;'),
            (8, True, 'rate is for 4 images a step, not 32; set a rate for it'),
        ],
    )
    def test_of_another_size(self, accumulative_counts, enable, message):
        scaling = dict(base_batch_size=64, enable=enable)
        loader = DataLoader(dataset(8), batch_size=4)
        (warning,) = check(loader, accumulative_counts=accumulative_counts, auto_scale_lr=scaling)
        assert message in warning
        assert ('--auto-scale-lr' in warning) is not enable

    def test_of_two_ranks(self, monkeypatch):
        monkeypatch.setattr(data_check, 'get_world_size', lambda: 2)
        loader = DataLoader(dataset(8), batch_size=4)
        (warning,) = check(loader, auto_scale_lr=dict(base_batch_size=4))
        assert 'batch_size=4 x 2 ranks: the learning rate is for 4 images a step, not 8' in warning
        assert check(loader, auto_scale_lr=dict(base_batch_size=8)) == []


def loader_of_digits(**kwargs):
    data = dict(type='Digits', subset=dict(per_class=4), pipeline=[dict(type='PackInputs')])
    sampler = dict(type='DefaultSampler', shuffle=True)
    return dict(dataset=data, sampler=sampler, num_workers=0, **kwargs)


@pytest.mark.parametrize('loop', [EpochBasedTrainLoop, IterBasedTrainLoop])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_checkpoints_that_count_epochs_in_a_run_of_iterations(loop, by_epoch):
    warnings = []
    runner = SimpleNamespace(
        train_loop=object.__new__(loop),
        hooks=[IterTimerHook(), CheckpointHook(by_epoch=by_epoch)],
        logger=SimpleNamespace(warning=warnings.append),
    )
    warn_of_checkpoints(runner)
    assert len(warnings) == (by_epoch and loop is IterBasedTrainLoop)
    assert all(text.startswith('default_hooks.checkpoint.by_epoch=True: no') for text in warnings)


class TestIndex:
    """CRD stores an entry for each image."""

    CRD = dict(loss=dict(type='CRDLoss', num_samples=40, negatives=8))

    @pytest.mark.parametrize(
        ('loss', 'parts'), [(CRD, 2), (CRD, 1), (dict(loss=dict(type='KDLoss')), 2)]
    )
    def test_parts_with_the_same_indices(self, loss, parts):
        tensors = dict(student='feature', teacher='feature') if loss is self.CRD else {}
        model = MODELS.build(mldr(neck=None, losses=[loss | tensors]))
        digits = dict(type='mldr_kd_mm.Digits', subset=dict(per_class=4))
        train = DATASETS.build(dict(type='ConcatDataset', datasets=[digits] * parts))
        if loss is self.CRD and parts > 1:
            with pytest.raises(ConfigError, match='^train_dataloader.dataset=ConcatDataset: must'):
                check_index(train, model)
        else:
            check_index(train, model)

    @pytest.mark.parametrize(
        ('entries', 'negatives', 'fix'),
        [(50, 8, 'num_samples=40'), (50, 45, 'num_samples=40 .*negatives=39'), (40, 8, None)],
    )
    def test_entries_that_no_image_has(self, entries, negatives, fix):
        crd = dict(type='CRDLoss', num_samples=entries, negatives=negatives)
        losses = [dict(loss=crd, student='feature', teacher='feature')]
        model = MODELS.build(mldr(neck=None, losses=losses))
        for images in (dataset(40), SimpleNamespace(dataset=dataset(40))):  # a RepeatDataset
            if fix:
                message = (
                    f'^model.losses.0.loss.num_samples=50: must be 40, .*options .*loss.{fix}$'
                )
                with pytest.raises(ConfigError, match=message):
                    check_index(images, model)
            else:
                check_index(images, model)


class TestClasses:
    @pytest.mark.parametrize(
        ('train', 'val', 'message'),
        [
            ('abc', 'ac', "2 and 3, and class 1 is 'c' here and 'b' there"),
            ('abc', 'ab', "2 and 3, and class 2 is 'missing' here and 'c' there"),
            ('ab', 'abc', "3 and 2, and class 2 is 'c' here and 'missing' there"),
            ('abc', 'abd', "3 and 3, and class 2 is 'd' here and 'c' there"),
            ('abc', 'acb', "class 1 is 'c' here and 'b' there"),
            ('abc', 'xy', "class 0 is 'x' here and 'a' there"),
        ],
    )
    def test_refuses(self, train, val, message):
        with pytest.raises(ConfigError, match=message):
            check(dataset(classes=train), dataset(classes=val))

    @pytest.mark.parametrize('meta', [None, dict(dataset_meta=dict(classes=('a', 'b')))])
    def test_of_a_checkpoint(self, meta):
        runner = SimpleNamespace(
            _test_loop=Loop.__new__(Loop),
            test_dataloader=DataLoader(dataset(classes='ac')),
        )
        if meta:
            message = (
                "test_dataloader.dataset: must have the classes of the checkpoint, .* 1 is 'c'"
            )
            with pytest.raises(ConfigError, match=message):
                DataCheckHook().after_load_checkpoint(runner, dict(meta=meta))
        runner._test_loop = dict()  # training
        DataCheckHook().after_load_checkpoint(runner, dict(meta=meta))

    @pytest.mark.parametrize(('train', 'val'), [('abc', 'abc'), ('abc', None), ('ab', 'xy')])
    def test_accepts(self, train, val):
        check_same_classes(dataset(classes=train), dataset(classes=val))
        check_same_classes(TensorDataset(torch.zeros(1)), dataset(classes=train))


@pytest.fixture
def logged(monkeypatch):
    """Collect the warnings."""
    texts = []
    log = 'mldr_kd_mm.engine.hooks.data_check.print_log'
    monkeypatch.setattr(log, lambda text, *_: texts.append(text))
    return texts


def teach(*teachers, names=('logits',)):
    """Return a model whose teachers have these classes."""
    members = [
        Member(label, SimpleNamespace(classes=tuple(classes), num_classes=len(classes)), [*names])
        for label, classes in zip(('teacher1', 'teacher2'), teachers, strict=False)
    ]
    return SimpleNamespace(teachers=members)


class TestTeacherClasses:
    @pytest.mark.parametrize('names', [['logits'], ['feature']])
    @pytest.mark.parametrize(
        ('teachers', 'data', 'message'),
        [
            (['abd', 'acb'], 'abc', "teacher2: its class 1 is 'c', which is class 2 of the trai"),
            (['xab'], 'abc', "teacher1: its class 1 is 'a', which is class 0 of the training set"),
            (['abc', 'bac'], None, "teacher2: its class 0 is 'b', which is class 1 of teacher1, "),
        ],
    )
    def test_another_order(self, teachers, data, message, names, logged):
        """An error where a loss reads the logits."""
        model = teach(*teachers, names=names)
        if names == ['logits']:
            with pytest.raises(ConfigError, match=f'{message}.*; use a teacher that numbers'):
                check_teacher_classes(model, dataset(classes=data))
        else:
            check_teacher_classes(model, dataset(classes=data))
            assert message in logged[-1] and logged[-1].endswith('its accuracy is too low')

    def test_of_the_validation_images(self, logged):
        val = dataset(classes='ba')
        with pytest.raises(ConfigError, match='class 1 of the validation set'):
            check_teacher_classes(teach('ab'), TensorDataset(torch.zeros(1)), val)

    def test_other_names(self, logged):
        check_teacher_classes(teach('abx', ['A', 'B', 'C']), dataset(classes='abc'))
        assert logged[0].startswith("teacher1: its class 2 is 'x', that of the training set 'c'; ")
        assert len(logged) == 2

    @pytest.mark.parametrize(
        ('teachers', 'data'),
        [
            (['abc', 'abc'], 'abc'),
            (['', 'cab'], 'abcd'),  # the losses compare the numbers
            (['aab'], ['a', 'a', 'b']),
            (['abc'], None),
        ],
    )
    def test_accepts(self, teachers, data, logged):
        check_teacher_classes(teach(*teachers), dataset(classes=data))
        assert not logged

    def test_a_name_of_two_classes(self, logged):
        """One of ImageNet's lists of names has another name for one of the two cranes."""
        check_teacher_classes(
            teach(['crane', 'x', 'crane']), dataset(classes=['crane bird', 'x', 'crane'])
        )
        assert len(logged) == 1

    def test_of_a_checkpoint(self, tmp_path, logged):
        """The distiller knows the names in its teacher's file."""
        init_default_scope('mldr_kd_mm')
        teacher = resnet(data_preprocessor=dict(NORMALIZATION))
        content = dict(
            state_dict=MODELS.build(teacher).state_dict(),
            meta=dict(dataset_meta=dict(classes=list('0123456798'))),
        )
        torch.save(content, tmp_path / 'teacher.pth')
        losses = [dict(loss=dict(type='KDLoss'), name='kd')]
        path = str(tmp_path / 'teacher.pth')
        model = MODELS.build(
            mldr(teacher=teacher, teacher_checkpoint=path, losses=losses, neck=None)
        )
        with pytest.raises(ConfigError, match="the teacher: its class 8 is '9', which is class 9"):
            check_teacher_classes(model, dataset(classes='0123456789'))


class TestSplit:
    @pytest.fixture
    def root(self, tmp_path):
        return image_folder(tmp_path / 'images', {'': 12})

    def splits(self, root, **kwargs):
        # mmengine runs the garbage collector for a serialised data set.
        kwargs['serialize_data'] = False
        return [ImageFolder(str(root), part, **kwargs) for part in ('train', 'val')]

    def record(self, folder):
        return json.loads(Path(folder, RECORD).read_text())

    def test_is_recorded(self, root, tmp_path):
        train, val = self.splits(root)
        check(train, val, work_dir=tmp_path)
        assert self.record(tmp_path) == dict(train=sorted(train.names()), val=sorted(val.names()))

    def test_resume_with_more_images(self, root, tmp_path):
        check(*self.splits(root), work_dir=tmp_path)
        before = self.record(tmp_path)
        for name in ('a/new.png', 'b/new.png', 'c/more.png'):
            (root / name).write_bytes((root / 'a/0.png').read_bytes())
        check(*self.splits(root), work_dir=tmp_path, resume=True)
        after = self.record(tmp_path)
        assert len(after['train']) + len(after['val']) == 39
        assert set(before['train']) <= set(after['train'])

    @pytest.mark.parametrize('change', [dict(val_fraction=0.6), dict(seed=5)])
    def test_resume_with_another_split(self, root, tmp_path, change):
        check(*self.splits(root), work_dir=tmp_path)
        before = self.record(tmp_path)
        for load_from in (None, str(tmp_path / 'epoch_1.pth')):
            with pytest.raises(ConfigError, match='trained images would now be held out'):
                folder = tmp_path / 'fork' if load_from else tmp_path
                check(
                    *self.splits(root, **change), work_dir=folder, resume=True, load_from=load_from
                )
        assert self.record(tmp_path) == before
        check(*self.splits(root, **change), work_dir=tmp_path)
        assert self.record(tmp_path) != before

    @pytest.mark.parametrize('change', [dict(val_fraction=0.6), dict(seed=5)])
    def test_no_image_both_trains_and_validates(self, root, tmp_path, change):
        (train, _), (_, val) = self.splits(root), self.splits(root, **change)
        for each in (train, RepeatDataset(train, 2)):
            with pytest.raises(ConfigError, match='in the training set, .* the same val_fraction'):
                check(each, val, work_dir=tmp_path)
        assert not (tmp_path / RECORD).exists()

    def test_no_image_is_in_any_part_of_the_validation_set(self, tmp_path):
        root = image_folder(tmp_path / 'both', {'train': 3, 'val': 1})
        train, val = self.splits(root)
        of_training = ImageFolder(str(root / 'train'), 'val', val_fraction=0.5)
        with pytest.raises(ConfigError, match='6 of its 6 images are also in the training set'):
            check_disjoint(train, ConcatDataset([val, of_training]))

    def test_no_image_is_in_both_through_a_link(self, tmp_path):
        """A link to a file, in the folder of the other split or in the held-out part."""
        root = image_folder(tmp_path / 'both', {'train': 3, 'val': 1})
        check(*self.splits(root), work_dir=tmp_path)
        (root / 'val/b/linked.png').symlink_to('../../train/b/2.png')
        message = r"1 of its 4 images are also .* '.*/both/train/b/2\.png', .*; remove the links"
        with pytest.raises(ConfigError, match=message):
            check(*self.splits(root), work_dir=tmp_path)
        root = image_folder(tmp_path / 'one', {'': 4})
        for number in range(9):
            (root / f'a/link{number}.png').symlink_to('0.png')
        with pytest.raises(ConfigError, match="'.*/one/a/0.png', .*; remove the links to them"):
            check(*self.splits(root, val_fraction=0.5), work_dir=tmp_path)
        assert not (tmp_path / RECORD).exists()

    def test_validation_on_the_training_images(self, root, tmp_path, logged):
        train, _ = self.splits(root)
        check(train, train, work_dir=tmp_path)
        assert len(logged) == 1 and logged[0].endswith("too high; set split='val' for other images")

    def test_a_teacher_of_another_split(self, root, tmp_path):
        teacher = tmp_path / 'teacher/epoch_1.pth'
        teacher.parent.mkdir()
        check(*self.splits(root), work_dir=teacher.parent)
        assert not check(*self.splits(root), work_dir=tmp_path, teacher=str(teacher))
        splits = self.splits(root, seed=5)
        (text,) = check(*splits, work_dir=tmp_path, teacher=str(teacher))
        assert text.startswith('the teacher was trained on') and 'its accuracy is too high' in text
        assert not check(*splits, work_dir=tmp_path, teacher='https://host/teacher.pth')

    @pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"train": 3}', b'\xff', b'[' * 9999])
    def test_a_damaged_record(self, root, tmp_path, content):
        (tmp_path / RECORD).write_bytes(content)
        check(*self.splits(root), work_dir=tmp_path, resume=True)
        assert self.record(tmp_path)['train']

    def test_folders_of_both_splits_need_none(self, tmp_path):
        root = image_folder(tmp_path / 'images', {'train': 2, 'val': 1})
        check(*self.splits(root), work_dir=tmp_path)
        assert not (tmp_path / RECORD).exists()
