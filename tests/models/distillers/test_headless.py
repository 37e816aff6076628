"""Teachers and students without a head: features and stages, and errors about logits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import NUM_CLASSES, batch, mldr, resnet, timm_resnet, vit
from mmengine.optim import build_optim_wrapper
from mmengine.runner import ValLoop
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.hooks import TeacherAccuracyHook
from mldr_kd_mm.models.taps.stages import has_head
from mldr_kd_mm.registry import MODELS

RSD = dict(loss=dict(type='RSDLoss'), student='feature', teacher='feature', name='rsd')
QUEUE = dict(
    loss=dict(type='QueueLoss', size=16), student='feature', teacher='feature', name='queue'
)


def timm(model_name, **kwargs):
    """Config of a timm model without a head; its size does not matter."""
    return dict(type='TimmClassifier', model_name=model_name, num_classes=0, **kwargs)


TINY = dict(embed_dim=24, depth=4, num_heads=2, img_size=32, patch_size=8)
# Image towers of DINOv2 (with LayerScale and, for some, registers), CLIP (with a norm before the
# blocks) and SigLIP (with pooling by attention), narrow and for 32 px.
TOWERS = {
    'dinov2': timm('vit_small_patch14_dinov2', **TINY),
    'dinov2 registers': timm('vit_small_patch14_reg4_dinov2', **TINY),
    'clip': timm('vit_base_patch16_clip_224', **TINY),
    'siglip': timm('vit_base_patch16_siglip_224', **TINY),
}
HEADLESS = {
    **TOWERS,
    'CNN of timm': timm_resnet(num_classes=0),
    'ViT of mmpretrain': dict(vit(), head=None),
    'CNN of mmpretrain': dict(resnet(), head=None),
    'CNN without a neck': dict(resnet(), head=None, neck=None),
}


class Embedder(nn.Module):
    """A module that returns features, like the models of transformers."""

    def __init__(self, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 4, 4)

    def forward(self, images):
        return dict(pooler_output=self.conv(images).mean((2, 3)), last_hidden_state=None)


OWN = dict(type='ModuleClassifier', module=f'{__name__}:Embedder', has_head=False)


def distiller(teacher, student=None, losses=(RSD, QUEUE), **kwargs):
    torch.manual_seed(0)
    config = mldr(teacher=teacher, student=student, neck=None, losses=list(losses), **kwargs)
    return MODELS.build(config)


@pytest.mark.parametrize('name', HEADLESS)
def test_teaches_features_and_stages(name):
    stages = ['stage1', 'stage4']
    fitnet = dict(loss=dict(type='FitNetLoss'), student=stages, teacher=stages, name='fitnet')
    model = distiller(HEADLESS[name], losses=[RSD, QUEUE, fitnet])
    assert not has_head(model.teacher.model) and 'logits' not in model.teacher.names
    data = model.data_preprocessor(batch(), True)
    losses = model(**data, mode='loss')
    assert list(losses) == [
        'loss',
        'loss_rsd_feature',
        'loss_queue_feature',
        'loss_fitnet_stage1',
        'loss_fitnet_stage4',
    ]
    assert all(value.isfinite() for value in losses.values())
    feature = model.teacher.embed(data['inputs'])
    assert feature.shape == (8, model.losses[1].losses[0].queue.shape[1])


@pytest.mark.parametrize('name', ['dinov2', 'siglip', 'CNN of timm', 'CNN without a neck'])
def test_is_a_student(name):
    """Every parameter but those that the output does not need is trained."""
    model = distiller(HEADLESS['clip'], HEADLESS[name])
    model.init_weights()
    wrapper = build_optim_wrapper(model, dict(optimizer=dict(type='SGD', lr=0.01)))
    before = {key: value.clone() for key, value in model.student.state_dict().items()}
    log = model.train().train_step(batch(), wrapper)
    assert list(log) == ['loss', 'loss_rsd_feature', 'loss_queue_feature']
    after = model.student.state_dict()
    same = [name for name, old in before.items() if torch.equal(after[name], old)]
    # The last norm of a residual block starts at 0, so its convolutions wait for a step.
    assert len(same) < 0.3 * len(before), same


def test_feature_is_that_of_the_model_with_its_head():
    """Also the weights are those of a checkpoint with a head."""
    torch.manual_seed(0)
    full = MODELS.build(dict(TOWERS['dinov2'], num_classes=NUM_CLASSES))
    model = distiller(TOWERS['dinov2'], losses=[RSD])
    model.teacher.model.load_state_dict(full.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    found = model.teacher(images, ['feature'])
    assert list(found) == ['feature']
    expected = full.eval().model.forward_head(full.model.forward_features(images), pre_logits=True)
    assert_close(model.teacher.model(images, mode='tensor'), expected)
    assert_close(found['feature'], model.teacher.model(model.teacher.prepare(images)))


def test_feature_of_a_backbone_alone_is_the_mean_of_its_map():
    model = distiller(dict(resnet(), head=None, neck=None))
    images = torch.randn(2, 3, 32, 32)
    (expected,) = model.teacher.model.backbone(model.teacher.prepare(images))
    assert_close(model.teacher.embed(images), expected.mean((2, 3)))


def test_own_module():
    model = distiller(OWN, OWN)
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    assert list(losses) == ['loss_rsd_feature', 'loss_queue_feature']
    assert model.embed(torch.zeros(2, 3, 32, 32)).shape == (2, 6)
    with pytest.raises(ConfigError, match='must return logits'):
        MODELS.build(dict(OWN, has_head=True))(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize(
    ('losses', 'student', 'message'),
    [
        (
            [dict(loss=dict(type='KDLoss'))],
            resnet(),
            "losses: kd: teacher='logits': the teacher has no head; available: feature, stage1",
        ),
        (
            [dict(loss=dict(type='KDLoss'), teacher='feature')],
            resnet(),
            "losses: kd: teacher='feature': has shape (1, 24); must be logits of 10 classes for KD",
        ),
        (
            [dict(loss=dict(type='DISTLoss'), student='feature', teacher='feature')],
            timm_resnet(num_classes=0),
            'losses: kd: DISTLoss compares logits, and neither the teacher nor the student has a '
            'head; use a loss of features, such as RSDLoss',
        ),
    ],
)
def test_cannot_compare_logits(losses, student, message):
    with pytest.raises(ConfigError) as caught:
        distiller(TOWERS['dinov2'], student, losses)
    assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


def test_teacher_cannot_predict():
    model = distiller(TOWERS['clip'])
    with pytest.raises(ConfigError, match='^teacher: has no head and cannot predict; its feature'):
        model.predict_teacher(torch.zeros(1, 3, 32, 32), [])


def test_accuracy_of_a_teacher_without_a_head_is_not_measured_by_its_output():
    """The student has a head, so the validation is the usual one."""
    model, lines = distiller(TOWERS['clip'], resnet(), [RSD]), []
    logger = SimpleNamespace(info=lines.append)
    runner = SimpleNamespace(model=model, val_loop=ValLoop, iter=0, logger=logger)
    TeacherAccuracyHook().before_train(runner)
    assert lines == ['The teacher has no head; its accuracy is not measured']


def test_not_finite_feature_of_a_teacher_is_an_error():
    model = distiller(TOWERS['clip'])
    nn.init.constant_(model.teacher.model.model.norm.weight, float('nan'))
    with pytest.raises(ConfigError, match='^teacher feature: 8 of 8 samples are not finite'):
        model(**model.data_preprocessor(batch(), True), mode='loss')
