"""Every family distils into every family; models of all styles work as students."""

from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
import torch
from helpers import batch, mldr
from mmpretrain.models import backbones
from timm import __version__ as timm_version
from timm import is_model
from torch import nn
from zoo import FAMILIES, MMPRETRAIN, TIMM, backbone, kind_of, row, stages_of, timm

from mldr_kd_mm import FeatureRecorder, MSDFNeck
from mldr_kd_mm.models.taps.stages import STAGES, stage_layout
from mldr_kd_mm.registry import MODELS

PAGE = (Path(__file__).parents[1] / 'docs/architectures.md').read_text()


def step(distiller: nn.Module, pixels: int) -> dict[str, torch.Tensor]:
    """Take one optimisation step, keep the gradients and return the losses."""
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)
    losses = distiller(**distiller.data_preprocessor(batch(2, pixels=pixels), True), mode='loss')
    total, _ = distiller.parse_losses(losses)
    total.backward()
    optimizer.step()
    return losses


def without_gradient(model: nn.Module) -> list[str]:
    """Return the trainable parameters that have no gradient after the last step."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize('student', FAMILIES)
@pytest.mark.parametrize('teacher', FAMILIES)
def test_any_family_teaches_any(teacher, student):
    torch.manual_seed(0)
    distiller = MODELS.build(mldr(FAMILIES[teacher], FAMILIES[student]))
    taught = [p.clone() for p in distiller.teacher.model.parameters()]
    losses = step(distiller, 32)
    assert all(loss.isfinite() for loss in losses.values())
    assert {f'loss_dfra_{stage}' for stage in STAGES} <= losses.keys()
    assert without_gradient(distiller) == []
    assert all(p.grad.isfinite().all() for p in distiller.parameters())
    for before, parameter in zip(taught, distiller.teacher.model.parameters(), strict=True):
        assert parameter.grad is None
        assert not parameter.requires_grad
        assert torch.equal(before, parameter)


@pytest.mark.parametrize('family', FAMILIES)
def test_the_stages_of_a_family(family):
    config = FAMILIES[family]
    found = stages_of(MODELS.build(config), (3, 32, 32))
    assert row(family, kind_of(config), 32, found) in PAGE, 'run: python tests/zoo.py'


@pytest.mark.parametrize('name', TIMM)
def test_a_student_of_timm(name):
    if not is_model(name):
        pytest.skip(f'timm {timm_version} has no {name}')
    style, size, changes = TIMM[name]
    torch.manual_seed(0)
    config = mldr(FAMILIES['CNN'], timm(name, **changes), input_size=(3, size, size))
    distiller = MODELS.build(config)
    losses = step(distiller, size)
    assert all(loss.isfinite() for loss in losses.values())
    assert without_gradient(distiller) == []
    assert not any(p.requires_grad for p in distiller.teacher.model.parameters())
    found = stages_of(distiller.student, (3, size, size))
    assert row(name, style, size, found) in PAGE, 'run: python tests/zoo.py'


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name == 'MixMIMTransformer'))
        for name in MMPRETRAIN
    ],
)
def test_a_backbone_of_mmpretrain(name):
    """The stages pass through the neck, and each gets a gradient from it."""
    size = MMPRETRAIN[name][1]
    model = backbone(name)
    recorder = FeatureRecorder()
    recorder.find_stages(model, (3, size, size))
    model.eval()
    with torch.no_grad(), recorder(model) as record:
        model(torch.zeros(1, 3, size, size))
    names = STAGES[: len(record)]  # LeViT has three
    # Leaves of the graph: no stage gets a gradient from a later one.
    features = [record[name].detach().requires_grad_() for name in names]
    layouts = [
        stage_layout(model, name, feature, (size, size))
        for name, feature in zip(names, features, strict=True)
    ]
    found = {recorder.taps[name]: str(each) for name, each in zip(names, layouts, strict=True)}
    assert row(name, 'backbone', size, found) in PAGE, 'run: python tests/zoo.py'
    neck = MSDFNeck(
        [layout.channels for layout in layouts],
        project_dim=16,
        grids=[None if layout.is_map else layout.grid for layout in layouts],
        num_classes=3,
    ).eval()
    stages = [layout.arrange(each) for layout, each in zip(layouts, features, strict=True)]
    for layout, stage in zip(layouts, stages, strict=True):
        tokens = math.prod(stage.shape[2:]) if layout.is_map else stage.shape[1]
        assert tokens - math.prod(layout.grid) in (0, 1)
    loss = neck(stages).fused_logits.square().sum()
    assert all(gradient is not None for gradient in torch.autograd.grad(loss, features))


def test_every_backbone_of_mmpretrain_is_there():
    classifiers = {
        name
        for name, cls in inspect.getmembers(backbones, inspect.isclass)
        if name in backbones.__all__
    }
    # A wrapper of timm models, two backbones for masked image modelling, CSPDarkNet's base class,
    # and one for images with one channel.
    others = {'TIMMBackbone', 'SparseResNet', 'SparseConvNeXt', 'CSPNet', 'LeNet5'}
    assert classifiers - others == set(MMPRETRAIN)
