"""Students whose training output is not their prediction, or whose loss takes other ways."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import NUM_CLASSES, batch, mldr, resnet, train
from mmpretrain.models import BaseClassifier, LinearClsHead
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, KDLoss
from mldr_kd_mm.registry import MODELS

KD = dict(loss=dict(type='KDLoss'))


def with_head(kind: str, **kwargs) -> dict:
    student = resnet(**kwargs)
    student['head']['type'] = kind
    return student


def build(student, losses=(KD,), **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(mldr(student=student, neck=None, losses=list(losses), **kwargs))
    model.init_weights()
    nn.init.normal_(model.teacher.model.head.layers.head.weight)
    return model


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(8, NUM_CLASSES)

    def forward(self, images):
        return self.fc(self.body(images).flatten(1))


class InNamespace(Network):
    """The models of transformers return objects with ``logits``."""

    def forward(self, images):
        return SimpleNamespace(logits=super().forward(images))


class Wrapper(BaseClassifier):
    """A classifier whose loss does not call its own forward."""

    def __init__(self, network=Network, data_preprocessor=None):
        super().__init__(data_preprocessor=dict(type='ClsDataPreprocessor', **data_preprocessor))
        self.net = network()

    def logits(self, images):
        output = self.net(images)
        return getattr(output, 'logits', output)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.loss(inputs, data_samples) if mode == 'loss' else self.logits(inputs)

    def loss(self, inputs, data_samples):
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return dict(loss=F.cross_entropy(self.logits(inputs), labels))


class Functional(Wrapper):
    """No module gives its logits."""

    def logits(self, images):
        return 2 * self.net(images)


@MODELS.register_module()
class MarginOfPairs(LinearClsHead):
    """Adds a margin in a loss of two or more images."""

    def forward(self, feats, margin=0.0):
        return self.fc(self.pre_logits(feats)) + margin

    def loss(self, feats, data_samples, **kwargs):
        (_, *_), margin = data_samples[1:], torch.arange(self.fc.out_features).to(feats[-1])
        return self._get_loss(self(feats, margin), data_samples)


@MODELS.register_module()
class MarginOfWeights(MarginOfPairs):
    """Weighs each image."""

    def loss(self, feats, data_samples, **kwargs):
        margin = torch.stack([sample.weight for sample in data_samples])
        return self._get_loss(self(feats, margin), data_samples)


def compare(model) -> None:
    """Check that KD compares what the student predicts."""
    model.student.eval()
    data = model.data_preprocessor(batch(), False)
    losses = model(**data, mode='loss')
    prediction = model.student(data['inputs'], mode='tensor')
    teacher = model.run_teacher(data['inputs'])['logits']
    assert_close(losses['loss_kd_logits'], KDLoss()(prediction, teacher))
    assert_close(losses['loss'], model.student.loss(**data)['loss'])
    losses['loss_kd_logits'].backward()
    assert all(p.grad is not None for p in model.student.parameters())


class TestLogits:
    def test_margin(self):
        """In training, ArcFace's logit of the true class is lower by its margin."""
        model = build(with_head('ArcFaceClsHead'))
        compare(model)
        assert (model.tapped_student._repeats_head, model.tapped_student.recorder.found) == (
            True,
            {},
        )

    @pytest.mark.parametrize(('network', 'tap'), [(Network, 'net'), (InNamespace, 'net.fc')])
    def test_loss_that_does_not_call_forward(self, network, tap):
        model = build(dict(type=Wrapper, network=network))
        compare(model)
        assert model.tapped_student.recorder.found == dict(logits=tap)

    def test_of_a_usual_student_are_tapped_where_they_were(self):
        model = build(resnet())
        compare(model)
        assert not model.tapped_student.recorder.found
        assert not model.tapped_student._repeats_head

    def test_of_a_loss_for_soft_labels(self):
        student = with_head(
            'ArcFaceClsHead', train_cfg=dict(augments=[dict(type='Mixup', alpha=1.0)])
        )
        student['head']['loss'] = dict(type='CrossEntropyLoss', use_soft=True)
        model = build(student)
        assert model.tapped_student._repeats_head
        losses = model(**model.data_preprocessor(batch(), True), mode='loss')
        assert losses['loss_kd_logits'].isfinite()

    def test_that_no_module_gives(self):
        with pytest.raises(
            ConfigError, match='^student: no module in the loss of Functional gives the logits'
        ):
            build(dict(type=Functional))

    def test_loss_that_compares_images(self):
        compare(build(with_head('MarginOfPairs')))

    def test_loss_that_needs_more_than_labels(self, monkeypatch):
        texts = []
        log = 'mldr_kd_mm.models.distillers.student.print_log'
        monkeypatch.setattr(log, lambda text, *_: texts.append(text))
        build(with_head('MarginOfPairs'))
        assert texts == []
        build(with_head('MarginOfWeights'))
        assert len(texts) == 1 and 'loss of random images cannot be computed' in texts[0]

    def test_tap_of_the_config_wins(self):
        taps = dict(logits='net.fc')
        model = build(
            dict(type=Functional), student_recorder=dict(type='FeatureRecorder', taps=taps)
        )
        assert not model.tapped_student.recorder.found

    def test_finding_them_leaves_no_trace(self):
        model = build(resnet())
        after = torch.rand(1)
        build(resnet())
        assert torch.equal(after, torch.rand(1))
        assert model.student.training
        assert model.student.backbone.bn1.num_batches_tracked == 0
        assert not any(m._forward_hooks for m in model.student.modules())


class TestMultiLabel:
    def models(self) -> dict:
        head = dict(type='MultiLabelLinearClsHead', num_classes=NUM_CLASSES, in_channels=64)
        return dict(student=resnet() | dict(head=head), teacher=resnet() | dict(head=dict(head)))

    @pytest.mark.parametrize('loss', ['KDLoss', 'OFALoss', 'DKDLoss', 'DFRALoss'])
    def test_losses_that_need_one_class(self, loss):
        with pytest.raises(
            ConfigError,
            match=f'^losses: kd: {loss} needs one class for each image, which the '
            "student's MultiLabelLinearClsHead does not predict; use a loss of features$",
        ):
            MODELS.build(mldr(neck=None, losses=[dict(loss=dict(type=loss))], **self.models()))

    @pytest.mark.skipif(
        MODELS.get('LinearRegressionHead') is None,
        reason='the original mmpretrain has no LinearRegressionHead',
    )
    def test_regression(self):
        head = dict(type='LinearRegressionHead', in_channels=64, num_classes=NUM_CLASSES)
        student = resnet() | dict(head=head)
        with pytest.raises(
            ConfigError, match="the student's LinearRegressionHead does not predict"
        ):
            MODELS.build(mldr(student=student, neck=None, losses=[KD]))

    def test_run_with_other_metrics(self, tmp_path):
        loss = dict(loss=dict(type='RKDLoss'), student='feature', teacher='feature')
        best = 'multi-label/f1-score'
        runner = train(
            mldr(neck=None, losses=[loss], **self.models()),
            tmp_path / 'run',
            val_evaluator=[
                dict(type='MultiLabelMetric', items=('f1-score',)),
                dict(type='MultiLabelMetric', average=None),
            ],
            default_hooks=dict(
                checkpoint=dict(type='AtomicCheckpointHook', save_best=best, rule='greater'),
                teacher_accuracy=dict(type='TeacherAccuracyHook'),
                progress=dict(type='ProgressHook'),
                figures=dict(type='FigureHook'),
            ),
        )
        assert runner.message_hub.get_info('best_score') is not None
        assert best in runner.message_hub.get_info('teacher_metrics')
