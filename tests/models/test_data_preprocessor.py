"""Mixup and cutmix are a function of the batch's views."""

from __future__ import annotations

import copy
from pathlib import Path

import mmpretrain.models
import numpy as np
import pytest
import torch
from helpers import NORMALIZATION, batch, resnet, timm_resnet
from mmengine.config import Config

from mldr_kd_mm.models.data_preprocessor import ClsDataPreprocessor
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.view import View

DATASETS = Path(__file__).parents[2] / 'configs/_base_/datasets'
AUGMENTS = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])


@pytest.fixture
def preprocessor():
    return MODELS.build(
        dict(type='ClsDataPreprocessor', **NORMALIZATION, batch_augments=copy.deepcopy(AUGMENTS))
    )


def viewed(epoch=0, seed=0, first=0):
    """A batch as a ViewSampler's loader gives it."""
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
    theirs = mmpretrain.models.ClsDataPreprocessor(
        **NORMALIZATION, batch_augments=copy.deepcopy(AUGMENTS)
    )
    torch.manual_seed(0), np.random.seed(0)
    expected = theirs(batch(), training)['inputs']
    torch.manual_seed(0), np.random.seed(0)
    assert torch.equal(preprocessor(batch(), training)['inputs'], expected)


@pytest.mark.parametrize('model', [resnet, timm_resnet], ids=['mmpretrain', 'timm'])
@pytest.mark.parametrize('data', ['cifar100_224', 'tiny-imagenet_64_strong', 'folder_224'])
def test_shipped_data_come_with_it(model, data):
    cfg = Config.fromfile(DATASETS / f'{data}.py')
    config = model(data_preprocessor=cfg.data_preprocessor, train_cfg=copy.deepcopy(AUGMENTS))
    assert type(MODELS.build(config).data_preprocessor) is ClsDataPreprocessor
    assert cfg.train_dataloader.sampler.type == 'ViewSampler'
