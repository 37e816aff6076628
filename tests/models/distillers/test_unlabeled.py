"""Batches in which some images, or all, have no label."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import NORMALIZATION, batch, mldr, resnet, timm_resnet, vit
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.distillers.student import Student
from mldr_kd_mm.models.taps.recorder import build_recorder
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.label import mark_unlabeled, split_by_label
from mldr_kd_mm.structures.view import View

MIXING = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
LABELLED = [1, 2, 5]
HEADS = dict(
    linear=resnet(),
    cosine=resnet() | dict(head=dict(type='ArcFaceClsHead', num_classes=10, in_channels=64)),
    accuracy=resnet()
    | dict(
        head=dict(type='LinearClsHead', num_classes=10, in_channels=64, cal_acc=True, topk=(1,))
    ),
    smooth=timm_resnet(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    mixed=vit(train_cfg=MIXING),
)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mldr_kd_mm')


def partly(labelled=LABELLED, size=8, views=False):
    """Return a batch in which only some samples have labels."""
    data = batch(size)
    for row, sample in enumerate(data['data_samples']):
        if row not in labelled:
            data['data_samples'][row] = sample = DataSample()
            mark_unlabeled(sample)
        if views:
            sample.set_field(View(0, 0, row), 'view', field_type='metainfo')
    return data


def student_of(config):
    torch.manual_seed(0)
    preprocessor = dict(NORMALIZATION, type='ClsDataPreprocessor')
    model = MODELS.build(copy.deepcopy(config) | dict(data_preprocessor=preprocessor))
    student = Student(model, build_recorder(None, 'student_recorder'))
    student.find_logits((3, 32, 32))
    return student


@pytest.mark.parametrize('head', HEADS)
def test_own_loss_is_that_of_the_labelled_images(head):
    """The mean over the labelled images; `logits` are those of all."""
    student = student_of(HEADS[head])
    student.model.eval()  # so that an image's output does not depend on the others
    data = student.model.data_preprocessor(partly(), True)
    losses, record = student.loss(**data, names=['logits'])
    rows = [data['data_samples'][row] for row in LABELLED]
    wanted = student.model.loss(data['inputs'][LABELLED], rows)
    assert [*losses] == ['loss'] and len(record['logits']) == 8
    torch.testing.assert_close(losses['loss'], wanted['loss'])
    # The hook on the loss is gone.
    again = student.model.loss(data['inputs'][LABELLED], rows)
    torch.testing.assert_close(again['loss'], wanted['loss'])


@pytest.mark.parametrize('head', ['linear', 'smooth'])
def test_without_any_label(head):
    """The loss is exactly 0, and each weight has a gradient, which DDP waits for."""
    student = student_of(HEADS[head])
    data = student.model.data_preprocessor(partly(labelled=[]), True)
    losses, record = student.loss(**data, names=['logits'])
    assert losses['loss'].item() == 0 and len(record['logits']) == 8
    losses['loss'].backward()
    for name, parameter in student.model.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


def test_a_loss_of_its_own_kind():
    student = student_of(HEADS['linear'])
    student.model.head.loss_module = None
    data = student.model.data_preprocessor(partly(), False)
    with pytest.raises(ConfigError, match='student: ImageClassifier has no loss_module, so its'):
        student.own_loss(**data)


class TestMixing:
    def mix(self, data, training=True):
        preprocessor = MODELS.build(
            dict(NORMALIZATION, type='ClsDataPreprocessor', batch_augments=MIXING)
        )
        return preprocessor(copy.deepcopy(data), training)

    def test_only_images_of_one_kind(self):
        """A mixed image has a label that is a mean of known labels, or none."""
        data = partly(views=True)
        for row in range(8):
            # The labelled images are black, the others white.
            data['inputs'][row] = 0 if row in LABELLED else 255
        mixed = self.mix(data)
        means = mixed['inputs'].mean((1, 2, 3))
        assert torch.equal(means > 0, torch.tensor([row not in LABELLED for row in range(8)]))
        assert len(means.unique()) == 2
        labelled, unlabelled = split_by_label(mixed['data_samples'])
        assert labelled == LABELLED
        for row in labelled:
            torch.testing.assert_close(mixed['data_samples'][row].gt_score.sum().item(), 1.0)
        for row in unlabelled:
            assert not {'gt_score', 'gt_label'} & {*mixed['data_samples'][row].keys()}

    def test_a_batch_without_labels_is_mixed(self):
        data = partly(labelled=[], views=True)
        plain, mixed = self.mix(data, False), self.mix(data)
        assert not torch.equal(plain['inputs'], mixed['inputs'])
        assert torch.equal(mixed['inputs'], self.mix(data)['inputs'])  # a function of the views

    def test_labelled_batches_are_mixed_as_before(self):
        """The draws depend on the labelled images of a batch alone."""
        data = partly(views=True)
        alone = dict(
            inputs=data['inputs'][LABELLED],
            data_samples=[data['data_samples'][row] for row in LABELLED],
        )
        assert torch.equal(self.mix(data)['inputs'][LABELLED], self.mix(alone)['inputs'])


class TestDistiller:
    def test_all_images_are_compared(self):
        torch.manual_seed(0)
        model = MODELS.build(mldr()).eval()
        data = model.data_preprocessor(partly(), False)
        losses = model.loss(**data)
        unlabelled = model.data_preprocessor(partly(labelled=[]), False)
        for name, value in model.loss(**unlabelled).items():
            torch.testing.assert_close(value, losses[name] * (name != 'loss'))
        model.distillation_stopped = True
        torch.testing.assert_close(model.loss(**data)['loss'], losses['loss'])
        assert model.loss(**unlabelled)['loss'].item() == 0

    @pytest.mark.parametrize('kind', ['DKDLoss', 'OFALoss'])
    def test_losses_that_need_a_label(self, kind):
        losses = [dict(loss=dict(type=kind), name='own')]
        model = MODELS.build(mldr(losses=losses, neck=None))
        message = f'losses: own: {kind} needs a label for each image, which DATA does not give; use'
        with pytest.raises(ConfigError, match=message):
            model.check_needs_no_label('DATA', some_have_one=True)
        with pytest.raises(ConfigError, match='5 of 8 images of a batch have no label'):
            model.loss(**model.data_preprocessor(partly(), True))

    def test_a_lost_label_is_still_an_error(self):
        data = batch(4)
        data['data_samples'][2] = DataSample(metainfo=dict(img_path='a.png'))
        with pytest.raises(ConfigError, match="image 'a.png' has no label; .* UnlabeledFolder"):
            MODELS.build(mldr()).data_preprocessor(data, True)
