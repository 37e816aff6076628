"""TappedModel: arranged tensors, and a model that its holder does not register."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import resnet, vit
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.registry import MODELS

SIZE = (3, 32, 32)


def tapped(config, taps='stages') -> TappedModel:
    torch.manual_seed(0)
    return TappedModel(MODELS.build(config), FeatureRecorder(taps))


@pytest.mark.parametrize(
    ('config', 'shapes', 'grid'),
    [
        (resnet(), [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4)], None),
        (vit(), [(17, 32)] * 4, (4, 4)),
    ],
    ids=['maps', 'tokens'],
)
def test_probe(config, shapes, grid):
    model = tapped(config)
    names = model.find_stages(SIZE)
    model.model.backbone.eval()
    modes = [module.training for module in model.model.modules()]
    probe = model.probe(['feature', *names], SIZE)
    assert [tuple(probe.tensors[name].shape[1:]) for name in names] == shapes
    assert [probe.width(name) for name in names] == [
        shape[0] if grid is None else shape[1] for shape in shapes
    ]
    assert {probe.grid(name) for name in names} == {grid}
    assert probe.grid('feature') is None and probe.width('logits') == 10
    assert [module.training for module in model.model.modules()] == modes


@torch.no_grad()
def test_record_is_arranged():
    """A transposed stage becomes tokens (B, N, C), and a convolution's feature a vector."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 7, 8, stride=8)
            self.channels_last = nn.Flatten(2)
            self.head = nn.Conv2d(7, 2, 1)

        def forward(self, images, mode='tensor'):
            tokens = self.channels_last(self.embed(images))
            return self.head(tokens.mean(2)[..., None, None]).flatten(1)

    model = TappedModel(
        Classifier().eval(), FeatureRecorder(dict(stage1='channels_last', feature='head:input'))
    )
    model.probe(['stage1', 'feature'], SIZE)
    images = torch.rand(2, *SIZE)
    record = model(images, ['stage1', 'feature'])
    tokens = model.model.embed(images).flatten(2).mT
    assert_close(record['stage1'], tokens, rtol=0, atol=0)
    assert_close(record['feature'], tokens.mean(1))
    with model.record(['stage1']) as record:
        model.model(images)
    assert list(record) == ['stage1'] and record['stage1'].shape == (2, 16, 7)


def test_holder_does_not_register_the_model():
    model = tapped(resnet())
    holder = nn.Module()
    holder.tapped = model
    assert not list(holder.parameters()) and not holder.state_dict()


def test_copy_taps_the_copied_model():
    """An EMA copies a whole Distiller: the student and its TappedModel."""
    model = tapped(resnet())
    holder = nn.Module()
    holder.student, holder.tapped = model.model, model
    other = copy.deepcopy(holder)
    assert other.tapped.model is other.student is not holder.student
