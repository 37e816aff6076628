"""A Distiller is a BaseClassifier for mmpretrain and mmengine."""

from __future__ import annotations

import copy
import io
import logging
from types import SimpleNamespace

import pytest
import torch
from helpers import NUM_CLASSES, batch, mldr, resnet, timm_resnet, vit
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from mmpretrain.engine import SwitchRecipeHook
from mmpretrain.models import BaseClassifier, LabelSmoothLoss
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, Distiller
from mldr_kd_mm.registry import MODELS

FEATURES = dict(loss=dict(type='RKDLoss'), student='feature', teacher='feature', name='rkd')


def build(config) -> Distiller:
    torch.manual_seed(0)
    model = MODELS.build(config)
    model.init_weights()
    # The head of the ViT starts at zero, and its drop path would make two passes differ.
    nn.init.normal_(model.teacher.model.head.layers.head.weight)
    return model


def losses_of(model, data=None):
    return model(**model.data_preprocessor(data or batch(), True), mode='loss')


@pytest.fixture(params=[resnet, timm_resnet, vit])
def student(request):
    return request.param()


class TestPrediction:
    def test_without_samples(self, student):
        model = build(mldr(student=student)).eval()
        inputs = model.data_preprocessor(batch(), False)['inputs']
        predictions = model.predict(inputs)
        expected = model.student.predict(inputs)
        assert [p.pred_label for p in predictions] == [p.pred_label for p in expected]
        assert predictions[0].pred_score.shape == (NUM_CLASSES,)

    def test_fills_the_samples(self, student):
        model = build(mldr(student=student)).eval()
        data = model.data_preprocessor(batch(), False)
        predictions = model.predict(**data)
        assert [id(sample) for sample in predictions] == [id(s) for s in data['data_samples']]
        assert all('pred_label' in sample and 'gt_label' in sample for sample in predictions)


@pytest.mark.parametrize(
    ('student', 'has_neck', 'has_head'),
    [(resnet(), True, True), (vit(), False, True), (timm_resnet(), False, False)],
)
@pytest.mark.parametrize('neck', [None, dict(type='MSDFNeck')])
def test_parts_are_those_of_the_student(student, has_neck, has_head, neck):
    loss = dict(loss=dict(type='KDLoss'))
    model = MODELS.build(mldr(student=student, neck=neck, losses=[loss]))
    assert (model.with_neck, model.with_head) == (has_neck, has_head)


class TestSwitchRecipeHook:
    def switch(self, model, **recipe):
        hook = SwitchRecipeHook([dict(action_epoch=1, **recipe)])
        hook.before_train_epoch(
            SimpleNamespace(model=model, epoch=0, logger=logging.getLogger('test'))
        )

    def test_loss(self, student):
        model = build(mldr(student=student))
        self.switch(model, loss=dict(type='LabelSmoothLoss', label_smooth_val=0.5))
        holder = getattr(model.student, 'head', model.student)
        assert isinstance(holder.loss_module, LabelSmoothLoss)
        data = model.data_preprocessor(batch(), False)
        model.student.eval()
        expected = model.student.loss(copy.deepcopy(data['inputs']), data['data_samples'])
        assert_close(model(**data, mode='loss')['loss'], expected['loss'])

    def test_augments(self, student):
        """mmpretrain's own preprocessor would not mix: it had no augments when it was built."""
        student['data_preprocessor'] = dict(type='mldr_kd_mm.ViewDataPreprocessor')
        model = build(mldr(student=student))
        plain = model.data_preprocessor(batch(), False)['inputs']
        mixup = dict(augments=[dict(type='Mixup', alpha=1.0)])
        for augments, mixes in ((mixup, True), (None, False), (mixup, True)):
            self.switch(model, batch_augments=augments)
            images = model.data_preprocessor(batch(), True)['inputs']
            assert torch.equal(images, plain) is not mixes


class TestLayerDepth:
    def rates(self, model) -> dict[str, float]:
        config = dict(
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5),
        )
        groups = build_optim_wrapper(model, config).optimizer.param_groups
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {names[id(p)]: group['lr'] for group in groups for p in group['params']}

    def test_is_that_of_the_student(self):
        rates = self.rates(build(mldr(student=vit())))
        alone = self.rates(MODELS.build(vit()))
        assert len(set(alone.values())) == 6
        assert {k: v for k, v in rates.items() if k.startswith('student.')} == {
            f'student.{name}': rate for name, rate in alone.items()
        }
        assert {v for k, v in rates.items() if not k.startswith('student.')} == {1.0}


class TestCopies:
    def test_pickle(self, student):
        model = build(mldr(student=student))
        model.student.eval()
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        data = model.data_preprocessor(batch(), False)
        expected = copy.deepcopy(model)(**copy.deepcopy(data), mode='loss')
        assert_close(loaded(**data, mode='loss'), expected, rtol=0, atol=0)

    def test_half_leaves_the_original_as_it_was(self):
        model = build(mldr())
        weights = copy.deepcopy(dict(model.teacher.model.state_dict()))
        other = copy.deepcopy(model).half()
        assert {p.dtype for p in other.teacher.model.parameters()} == {torch.float16}
        assert {p.dtype for p in other.parameters()} == {torch.float16}
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert_close(dict(model.teacher.model.state_dict()), weights, rtol=0, atol=0)
        losses_of(model)

    def test_converting_the_original_leaves_a_copy_as_it_was(self):
        model = build(mldr())
        other = copy.deepcopy(model)
        model.double()
        assert {p.dtype for p in model.teacher.model.parameters()} == {torch.float64}
        losses_of(other)

    def test_the_teacher_is_shared_until_then(self):
        model = build(mldr())
        other = copy.deepcopy(model)
        assert other.float().to('cpu').teacher is model.teacher


class TestBuiltTeacher:
    def test_equals_its_config(self):
        torch.manual_seed(1)
        teacher = MODELS.build(vit(data_preprocessor=mldr()['data_preprocessor']))
        nn.init.normal_(teacher.head.layers.head.weight)
        weights = copy.deepcopy(teacher.state_dict())
        config = mldr()
        model = MODELS.build(config | dict(teacher=teacher))
        model.init_weights()
        assert model.teacher.model is teacher
        assert_close(dict(teacher.state_dict()), dict(weights), rtol=0, atol=0)
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())

        expected = MODELS.build(config)
        expected.load_state_dict(model.state_dict())
        expected.teacher.model.load_state_dict(weights)
        assert_close(losses_of(model), losses_of(expected), rtol=0, atol=0)

    @pytest.mark.parametrize('module', [nn.Linear(2, 2), BaseModule()])
    def test_of_another_kind(self, module):
        with pytest.raises(ConfigError, match=r'^teacher: is a \w+; must be an mmpretrain class'):
            MODELS.build(mldr() | dict(teacher=module))


class TestStudentWithoutHead:
    def config(self, student=None, **kwargs):
        student = student or resnet()
        student['head'] = None
        return mldr(student=student, **dict(dict(neck=None, losses=[FEATURES]), **kwargs))

    @pytest.mark.parametrize('student', [resnet, vit])
    def test_is_trained_by_the_losses_alone(self, student):
        names = ['stage1', 'stage4']
        fitnet = dict(loss=dict(type='FitNetLoss'), student=names, teacher=names, name='fitnet')
        model = build(self.config(student(), losses=[FEATURES, fitnet]))
        losses = losses_of(model)
        assert list(losses) == ['loss_rkd_feature', 'loss_fitnet_stage1', 'loss_fitnet_stage4']
        assert losses['loss_rkd_feature'] > 0
        model.parse_losses(losses)[0].backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_gives_features(self):
        model = build(self.config()).eval()
        assert model.extract_feat(torch.zeros(2, 3, 32, 32))[-1].shape == (2, 64)
        assert (model.with_neck, model.with_head) == (True, False)

    @pytest.mark.parametrize('run', [lambda m, x: m.predict(x), lambda m, x: m(x, mode='predict')])
    def test_cannot_predict(self, run):
        with pytest.raises(ConfigError, match='^student: has no head and cannot predict; set val'):
            run(build(self.config()), torch.zeros(2, 3, 32, 32))

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            (
                dict(losses=[dict(loss=dict(type='KDLoss'))]),
                "losses: kd: student='logits': the student has no head; available: feature, stage1",
            ),
            (
                dict(losses=[dict(loss=dict(type='KDLoss'), student='feature')]),
                "losses: kd: student='feature': has shape (1, 64); must be logits of 10 classes",
            ),
            (dict(neck=dict(type='MSDFNeck')), 'neck: must be None, as the student has no head'),
        ],
        ids=str,
    )
    def test_has_no_logits(self, wrong, message):
        with pytest.raises(ConfigError) as caught:
            MODELS.build(self.config(**wrong))
        assert str(caught.value).startswith(message)


class Maps(BaseClassifier):
    """A classifier with logits (B, C, H, W)."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=dict(type='ClsDataPreprocessor'))
        self.conv = nn.Conv2d(3, NUM_CLASSES, 16, stride=16)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.conv(inputs)

    def loss(self, inputs, data_samples):
        return dict(loss=self(inputs).mean())


@pytest.mark.parametrize('loss', ['KDLoss', 'OFALoss', 'DISTLoss', 'DFRALoss'])
@pytest.mark.parametrize('models', [dict(student=dict(type=Maps)), dict(teacher=dict(type=Maps))])
def test_losses_of_logits_refuse_maps(loss, models):
    config = mldr(neck=None, losses=[dict(loss=dict(type=loss))], **models)
    (side,) = models
    with pytest.raises(ConfigError) as caught:
        MODELS.build(config)
    assert str(caught.value).startswith(
        f"losses: kd: {side}='logits': has shape (1, 10, 2, 2); must be logits of 10 classes for"
    )
