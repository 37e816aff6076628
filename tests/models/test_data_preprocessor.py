"""The data preprocessor: mixup and CutMix that depend on the batch's views, and Renormalize."""

from __future__ import annotations

import copy
from itertools import product
from pathlib import Path

import mmpretrain.registry
import numpy as np
import pytest
import torch
from helpers import NORMALIZATION, batch, resnet, timm_resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.models import ClsDataPreprocessor
from torch.testing import assert_close

from mldr_kd_mm.models.data_preprocessor import Renormalize, ViewDataPreprocessor
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
