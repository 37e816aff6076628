"""MobileNetV2_CIFAR has MobileNetV2's weights and other strides."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models.backbones import MobileNetV2

from mldr_kd_mm.models.backbones import MobileNetV2_CIFAR
from mldr_kd_mm.registry import MODELS


def evaluating(model: torch.nn.Module) -> torch.nn.Module:
    model.eval()  # returns None in mmpretrain's backbones
    return model


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


def test_sizes_of_the_stages():
    model = evaluating(MobileNetV2_CIFAR(out_indices=range(8)))
    with torch.no_grad():
        features = model(torch.zeros(2, 3, 32, 32))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (16, 32, 32),
        (24, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
        (96, 8, 8),
        (160, 4, 4),
        (320, 4, 4),
        (1280, 4, 4),
    ]


@pytest.mark.parametrize('widen_factor', [0.35, 1.0, 1.4])
def test_weights_load_either_way(widen_factor):
    cifar = MobileNetV2_CIFAR(widen_factor=widen_factor)
    plain = MobileNetV2(widen_factor=widen_factor)
    assert list(shapes(cifar).items()) == list(shapes(plain).items())
    cifar.load_state_dict(plain.state_dict())
    plain.load_state_dict(cifar.state_dict())


def test_only_strides_differ():
    """With MobileNetV2's strides it computes MobileNetV2's outputs."""
    torch.manual_seed(0)
    cifar, plain = evaluating(MobileNetV2_CIFAR()), evaluating(MobileNetV2())
    cifar.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert cifar(image)[0].shape[-2:] == (8, 8)
        cifar.conv1.conv.stride = (2, 2)
        cifar.layer2[0].conv[1].conv.stride = (2, 2)
        torch.testing.assert_close(cifar(image)[0], plain(image)[0], rtol=0, atol=0)


def test_the_parent_keeps_its_strides():
    MobileNetV2_CIFAR()
    with torch.no_grad():
        features = evaluating(MobileNetV2())(torch.zeros(1, 3, 64, 64))[0]
    assert features.shape == (1, 1280, 2, 2)


@pytest.mark.parametrize('scope', ['mldr_kd_mm', 'mmpretrain'])
@pytest.mark.parametrize('name', ['MobileNetV2_CIFAR', 'mldr_kd_mm.MobileNetV2_CIFAR'])
def test_a_classifier_trains_on_it(scope, name):
    config = dict(
        type='ImageClassifier',
        backbone=dict(type=name, widen_factor=0.35),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=1280),
    )
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(config)
    assert isinstance(model.backbone, MobileNetV2_CIFAR)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.backbone.conv1.conv.weight.grad.abs().sum() > 0
