"""Label-smoothed cross-entropy against mmpretrain's."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import LabelSmoothLoss

from mldr_kd_mm.models.losses.label_smoothing import SmoothedCrossEntropyLoss
from mldr_kd_mm.registry import MODELS

CONFIG = dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=10)


def build(scope):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(CONFIG | dict(type='LabelSmoothLoss'))


def test_names():
    assert type(build('mldr_kd_mm')) is SmoothedCrossEntropyLoss
    with DefaultScope.overwrite_default_scope('mldr_kd_mm'):
        assert type(MODELS.build(CONFIG | dict(type='mmpretrain.LabelSmoothLoss'))) is (
            LabelSmoothLoss
        )


@pytest.mark.parametrize('shape', [(7,), (7, 1), (7, 10)], ids=str)
@pytest.mark.parametrize('mode', ['original', 'classy_vision'])
def test_is_mmpretrains_and_reads_no_value(monkeypatch, shape, mode):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(7, 10, generator=generator)
    labels = torch.randint(0, 10, shape, generator=generator)
    if shape == (7, 10):
        labels = torch.rand(7, 10, generator=generator)
    found = []
    for kind in (LabelSmoothLoss, SmoothedCrossEntropyLoss):
        if kind is SmoothedCrossEntropyLoss:
            monkeypatch.setattr(torch.Tensor, 'item', None)
        logits = scores.clone().requires_grad_()
        loss = kind(0.1, mode=mode)
        value = loss(logits, labels, avg_factor=7)
        value.backward()
        found.append((value.detach(), logits.grad))
    assert all(map(torch.equal, *found))


def test_wrong_label():
    with pytest.raises(RuntimeError, match='Class values must be smaller than num_classes'):
        build('mldr_kd_mm')(torch.zeros(2, 10), torch.tensor([0, 10]))
