"""The data preprocessor: mixup and CutMix that depend on the batch's views, and Renormalize."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path

import mmpretrain.registry
import numpy as np
import pytest
import timm
import torch
from helpers import NORMALIZATION, batch, mldr, resnet, timm_resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.apis.model import ModelHub
from mmpretrain.models import ClsDataPreprocessor
from safetensors.torch import save_file
from torch.testing import assert_close

from mldr_kd_mm.models import data_preprocessor
from mldr_kd_mm.models.data_preprocessor import (
    Renormalize,
    ViewDataPreprocessor,
    check_statistics,
    state_statistics,
    with_statistics,
)
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.view import View

DATASETS = Path(__file__).parents[2] / 'configs/_base_/datasets'
AUGMENTS = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])


@pytest.fixture
def preprocessor():
    return MODELS.build(
        dict(type='ViewDataPreprocessor', **NORMALIZATION, batch_augments=copy.deepcopy(AUGMENTS))
    )


def viewed(epoch=0, seed=0, first=0):
    """Return a batch like that of a loader with a ViewSampler."""
    data = batch()
    for place, sample in enumerate(data['data_samples']):
        sample.set_field(View(seed, epoch, first + place), 'view', field_type='metainfo')
    return data


def mixed(preprocessor, data):
    return preprocessor(copy.deepcopy(data), True)['inputs']


def test_same_batch_is_mixed_the_same(preprocessor):
    torch.manual_seed(0), np.random.seed(0)
    one = mixed(preprocessor, viewed())
    torch.manual_seed(1), np.random.seed(1)
    assert torch.equal(mixed(preprocessor, viewed()), one)
    assert not torch.equal(one, preprocessor(viewed(), False)['inputs'])


@pytest.mark.parametrize('changed', [dict(epoch=1), dict(seed=1), dict(first=1)], ids=str)
def test_another_batch_is_mixed_otherwise(preprocessor, changed):
    assert not torch.equal(mixed(preprocessor, viewed()), mixed(preprocessor, viewed(**changed)))


def test_leaves_the_global_state_alone(preprocessor):
    torch.manual_seed(0), np.random.seed(0)
    before = torch.rand(1), np.random.rand()
    torch.manual_seed(0), np.random.seed(0)
    preprocessor(viewed(), True)
    assert (torch.rand(1), np.random.rand()) == before


@pytest.mark.parametrize('training', [True, False])
def test_is_mmpretrains_where_no_view_is_known(preprocessor, training):
    theirs = ClsDataPreprocessor(**NORMALIZATION, batch_augments=copy.deepcopy(AUGMENTS))
    torch.manual_seed(0), np.random.seed(0)
    expected = theirs(batch(), training)['inputs']
    torch.manual_seed(0), np.random.seed(0)
    assert torch.equal(preprocessor(batch(), training)['inputs'], expected)


@pytest.mark.parametrize('labels', ['one', 'several', 'scores'])
@pytest.mark.parametrize('kind', ['Mixup', 'CutMix'])
def test_labels_and_augments_are_mmpretrains(kind, labels):
    augments = dict(augments=dict(type=kind, alpha=1.0))
    found = []
    for scope in ('mmpretrain', 'mldr_kd_mm'):
        with DefaultScope.overwrite_default_scope(scope):
            config = dict(type='ClsDataPreprocessor', **NORMALIZATION, batch_augments=augments)
            preprocessor = MODELS.build(copy.deepcopy(config))
        (augment,) = preprocessor.batch_augments.augments
        assert type(augment).__module__.startswith(scope)
        data = batch()
        for number, sample in enumerate(data['data_samples']):
            if labels == 'several':
                sample.set_gt_label(torch.arange(number % 3 + 1))
            if labels == 'scores':
                sample.set_gt_score(torch.rand(10, generator=torch.Generator().manual_seed(number)))
        torch.manual_seed(0), np.random.seed(0)
        data = preprocessor(data, True)
        samples = data['data_samples']
        found.append(
            [
                data['inputs'],
                *(sample.gt_score for sample in samples),
                *(sample.gt_label for sample in samples),
            ]
        )
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_labels_are_copied_together(monkeypatch):
    copied = []

    def to_device(tensor, device):
        copied.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(data_preprocessor, 'to_device', to_device)
    ViewDataPreprocessor(**NORMALIZATION)(batch(), True)
    assert copied == [(8, 3, 32, 32), (8,)]


@pytest.mark.parametrize('model', [resnet, timm_resnet], ids=['mmpretrain', 'timm'])
@pytest.mark.parametrize('data', ['cifar100_224', 'tiny-imagenet_64_strong', 'folder_224'])
def test_shipped_data_come_with_it(model, data):
    cfg = Config.fromfile(DATASETS / f'{data}.py')
    config = model(data_preprocessor=cfg.data_preprocessor, train_cfg=copy.deepcopy(AUGMENTS))
    assert type(MODELS.build(config).data_preprocessor) is ViewDataPreprocessor
    assert cfg.train_dataloader.sampler.type == 'ViewSampler'


@pytest.mark.parametrize(
    ('scope', 'name', 'expected'),
    [
        ('mldr_kd_mm', 'ClsDataPreprocessor', ViewDataPreprocessor),
        ('mmpretrain', 'ClsDataPreprocessor', ClsDataPreprocessor),
        ('mmpretrain', 'mldr_kd_mm.ClsDataPreprocessor', ViewDataPreprocessor),
        ('mldr_kd_mm', 'mmpretrain.ClsDataPreprocessor', ClsDataPreprocessor),
        ('mldr_kd_mm', 'ViewDataPreprocessor', ViewDataPreprocessor),
        ('mmpretrain', 'ViewDataPreprocessor', ViewDataPreprocessor),
    ],
)
def test_names(scope, name, expected):
    with DefaultScope.overwrite_default_scope(scope):
        for registry in (MODELS, mmpretrain.registry.MODELS):
            assert type(registry.build(dict(type=name))) is expected


PLAIN = dict()
IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
BGR = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 2.0, 3.0])
CIFAR = dict(mean=[129.3, 124.1, 112.4], std=[68.2, 65.4, 70.4])
CONFIGS = dict(plain=PLAIN, imagenet=IMAGENET, bgr=BGR, cifar=CIFAR, flipped=dict(to_rgb=True))


def images(batch=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 5, 6), generator=generator, dtype=torch.uint8)


def preprocess(config, inputs):
    return ClsDataPreprocessor(**config)(dict(inputs=inputs))['inputs']


def renormalize(source, target):
    return Renormalize(ClsDataPreprocessor(**source), ClsDataPreprocessor(**target))


PAIRS = list(product(CONFIGS.values(), repeat=2))


class TestPairs:
    def test_gives_what_the_other_preprocessor_would_have(self):
        for source, target in PAIRS:
            found = renormalize(source, target)(preprocess(source, images()))
            assert_close(found, preprocess(target, images()), rtol=1e-5, atol=1e-4)

    def test_mixup_may_come_first(self):
        """Renormalisation and mixing may be applied in either order."""

        def mixed(config):
            first, second = preprocess(config, images()), preprocess(config, images(seed=1))
            batch = 0.3 * first + 0.7 * second
            batch[..., 2:4, 1:3] = first[..., 2:4, 1:3]
            return batch

        for source, target in PAIRS:
            found = renormalize(source, target)(mixed(source))
            assert_close(found, mixed(target), rtol=1e-5, atol=1e-4)

    def test_nothing_is_done_where_both_are_equal(self):
        for source, target in PAIRS:
            inputs = preprocess(source, images())
            assert (renormalize(source, target)(inputs) is inputs) == (source == target)


channels = st.lists(st.floats(0, 255), min_size=3, max_size=3)
widths = st.lists(st.floats(1, 255), min_size=3, max_size=3)
configs = st.fixed_dictionaries(dict(mean=channels, std=widths, to_rgb=st.booleans()))


@settings(max_examples=50, deadline=None)
@given(configs, configs)
def test_any_pair(source, target):
    found = renormalize(source, target)(preprocess(source, images()))
    # Compare in units of pixels, since the target's scale may be anything.
    atol = 1e-3 / min(target['std'])
    assert_close(found, preprocess(target, images()), rtol=1e-4, atol=atol)


def test_input_is_not_changed():
    inputs = preprocess(CIFAR, images())
    before = inputs.clone()
    renormalize(CIFAR, IMAGENET)(inputs)
    assert_close(inputs, before, rtol=0, atol=0)


def test_is_not_saved_but_moves():
    module = renormalize(CIFAR, IMAGENET)
    assert not module.state_dict()
    assert module.double()(preprocess(CIFAR, images()).double()).dtype == torch.float64


VIT = dict(type='TimmClassifier', model_name='vit_small_patch16_224')  # trained with 0.5 and 0.5
HALF = dict(mean=[127.5] * 3, std=[127.5] * 3)
OTHER = dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])


def state(**config) -> dict:
    """Return the content of a checkpoint of a run with this config."""
    return dict(state_dict={'a': torch.ones(1)}, meta=dict(cfg=Config(config).pretty_text))


class TestStatistics:
    """A teacher gets the statistics of its weights, as far as something states them."""

    @pytest.fixture
    def logged(self, monkeypatch):
        lines = []
        monkeypatch.setattr(data_preprocessor, 'print_log', lambda text, *args: lines.append(text))
        return lines

    @staticmethod
    def of(classifier, checkpoint=None, shared=IMAGENET, side='teacher'):
        fields = with_statistics(side, classifier, shared, checkpoint)['data_preprocessor']
        return dict(mean=fields['mean'], std=fields['std'])

    def test_of_timms_weights(self, logged):
        assert self.of(dict(VIT, pretrained=True)) == HALF
        (line,) = logged
        assert line.startswith('teacher: mean [127.5, 127.5, 127.5], std [127.5, ')
        assert "timm's for vit_small_patch16_224" in line and 'bicubic resizing' in line
        overlay = dict(VIT, pretrained=True, pretrained_cfg_overlay=dict(std=(0.2,) * 3))
        assert self.of(overlay)['std'] == [51.0] * 3
        backbone = dict(VIT, type='TIMMBackbone', pretrained=True)
        assert self.of(dict(type='ImageClassifier', backbone=backbone)) == HALF

    def test_interpolation_is_noted(self, logged):
        self.of(dict(type='TimmClassifier', model_name='resnet18', pretrained=True))
        assert "(the run's, the same as timm's for resnet18, " in logged[-1]
        assert logged[-1].endswith('which were trained with bicubic resizing)')

    def test_config_says_otherwise(self, logged):
        assert self.of(dict(VIT, pretrained=True, data_preprocessor=dict(OTHER))) == OTHER
        assert logged == ["teacher: mean [1, 2, 3], std [4, 5, 6] (its config's)"]

    def test_of_random_weights(self, logged):
        assert self.of(VIT) == {name: IMAGENET[name] for name in HALF}
        assert len(logged) == 1 and logged[0].endswith("(the run's)")

    @pytest.mark.parametrize('part', ['run', 'model', 'student'])
    def test_of_a_runs_checkpoint(self, part, tmp_path, logged):
        """A teacher that this project has trained keeps the statistics of its training."""
        model = dict(type='Distiller', student=dict(VIT)) if part == 'student' else dict(VIT)
        config = dict(model=model)
        holder = dict(run=config, model=model, student=model.get('student'))[part]
        holder['data_preprocessor'] = dict(CIFAR)
        torch.save(state(**config), tmp_path / 'epoch_1.pth')
        for classifier in (dict(VIT), resnet()):
            assert self.of(classifier, str(tmp_path / 'epoch_1.pth')) == CIFAR
        path = str(tmp_path / 'epoch_1.pth')
        assert self.of(dict(VIT), path, CIFAR) == CIFAR
        assert logged[-1].endswith(f"(the run's, the same as those of {path})")

    def test_of_a_test(self, tmp_path, logged):
        path = str(tmp_path / 'epoch_1.pth')
        torch.save(state(model=dict(VIT), data_preprocessor=dict(CIFAR)), path)
        check_statistics(ClsDataPreprocessor(**CIFAR), path, 'checkpoint')
        check_statistics(ClsDataPreprocessor(**CIFAR), 'lost.pth', 'checkpoint')
        assert not logged
        for other in (IMAGENET, PLAIN):
            check_statistics(ClsDataPreprocessor(**other), path, 'checkpoint')
        assert all('checkpoint: was trained with mean [129.3, 124.1' in line for line in logged)
        assert 'is tested with mean [0, 0, 0], std [1, 1, 1]' in logged[1]

    def test_of_a_run_on_bgr_images(self, tmp_path):
        loader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))
        path = str(tmp_path / 'epoch_1.pth')
        for to_rgb in (False, True):
            trained = dict(OTHER, to_rgb=to_rgb)
            config = dict(model=dict(VIT), data_preprocessor=trained, val_dataloader=loader)
            torch.save(state(**config), path)
            fields = with_statistics('teacher', VIT, IMAGENET, path)['data_preprocessor']
            assert fields == dict(IMAGENET, **OTHER, to_rgb=to_rgb)

    @pytest.mark.parametrize(('classes', 'wanted'), [(1000, HALF), (37, CIFAR)])
    def test_of_a_file_that_states_nothing(self, classes, wanted, tmp_path, logged):
        torch.save({'a': torch.ones(1)}, tmp_path / 'vit.pth')
        found = self.of(dict(VIT, num_classes=classes), str(tmp_path / 'vit.pth'), CIFAR)
        assert found == wanted
        if classes == 37:
            assert logged[-1].startswith('teacher: its weights may have been trained with mean [12')
            assert 'set model.teacher.data_preprocessor=dict(mean=[127.5, ' in logged[-1]

    @pytest.mark.parametrize('text', ['', 'a(', 'data_preprocessor = 3', 'model = 4'])
    def test_of_a_malformed_file(self, text, tmp_path):
        content = dict(state_dict={'a': torch.ones(1)}, meta=dict(cfg=text))
        torch.save(content, tmp_path / 'a.pth')
        (tmp_path / 'b').mkdir()
        save_file({'a': torch.ones(1)}, tmp_path / 'b/model.safetensors')
        (tmp_path / 'b/config.json').write_text('{"pretrained_cfg": {"mean": ["x", 1, 2]}}')
        for path in (tmp_path / 'a.pth', tmp_path / 'b', tmp_path / 'lost.pth'):
            assert self.of(resnet(), str(path)) == {name: IMAGENET[name] for name in HALF}

    @pytest.mark.parametrize('bgr', [False, True])
    def test_of_mmpretrains_weights(self, bgr, monkeypatch):
        name = 'net_8xb32_in1k_20210831-fbbb1da6.pth'
        loader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))
        config = dict(data_preprocessor=dict(OTHER, to_rgb=not bgr), test_dataloader=loader)
        known = type('Info', (), dict(weights=f'https://host/v0/{name}', config=Config(config)))
        monkeypatch.setattr('mmpretrain.apis.model.list_models', list)
        monkeypatch.setattr(ModelHub, '_models_dict', {'net': known})
        monkeypatch.setattr(ModelHub, 'get', lambda name: known)
        for teacher, path in [
            (resnet(), f'elsewhere/{name}'),
            (resnet(init_cfg=dict(type='Pretrained', checkpoint=name)), None),
        ]:
            found = with_statistics('teacher', teacher, IMAGENET, path)['data_preprocessor']
            assert found == dict(IMAGENET, **OTHER, to_rgb=not bgr)

    def test_of_a_folder_that_timm_loads(self, tmp_path):
        """The Distiller's teacher sees its images as they were in training."""
        model = timm.create_model('test_resnet', num_classes=10)
        save_file(model.state_dict(), tmp_path / 'model.safetensors')
        known = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], num_classes=10)
        content = dict(architecture='test_resnet', num_classes=10, pretrained_cfg=known)
        (tmp_path / 'config.json').write_text(json.dumps(content))
        by_timm = dict(type='TimmClassifier', model_name=f'local-dir:{tmp_path}', pretrained=True)
        by_file = dict(type='TimmClassifier', model_name='test_resnet', num_classes=10)
        for teacher, checkpoint in ((by_timm, None), (by_file, str(tmp_path))):
            distiller = MODELS.build(mldr(teacher=teacher, teacher_checkpoint=checkpoint))
            data = batch(2)['inputs'].float()
            images = distiller.data_preprocessor(dict(inputs=data))['inputs']
            seen = distiller.teacher.prepare(images)
            mean, std = (torch.tensor(known[k]).view(3, 1, 1) for k in ('mean', 'std'))
            assert_close(seen, (data / 255 - mean) / std, rtol=1e-4, atol=1e-4)

    def test_of_a_student_are_written_into_its_config(self, logged):
        pretrained = dict(VIT, pretrained=True)
        assert self.of(pretrained, side='student') == {name: IMAGENET[name] for name in HALF}
        assert 'student: its weights may have been trained with' in logged[-1]
        pair = Config(dict(model=mldr(student=pretrained), data_preprocessor=dict(IMAGENET)))
        alone = Config(dict(model=copy.deepcopy(pretrained), data_preprocessor=dict(IMAGENET)))
        for cfg in (pair, alone):
            state_statistics(cfg)
        assert pair.model.student.data_preprocessor == HALF
        assert alone.model.data_preprocessor == dict(IMAGENET, **HALF)
        assert alone.data_preprocessor == IMAGENET
        before = pair.pretty_text
        state_statistics(pair)
        assert pair.pretty_text == before

    @pytest.mark.parametrize(
        'student',
        [VIT, resnet(), dict(VIT, pretrained=True, data_preprocessor=OTHER), timm_resnet()],
    )
    def test_others_are_left_alone(self, student):
        for model in (mldr(student=student), copy.deepcopy(student)):
            cfg = Config(dict(model=model, data_preprocessor=dict(IMAGENET)))
            before = cfg.pretty_text
            state_statistics(cfg)
            assert cfg.pretty_text == before
