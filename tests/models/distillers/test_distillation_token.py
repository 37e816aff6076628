"""Students with a distillation token: which loss trains which head, and what they predict."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from helpers import NUM_CLASSES, batch, image_folder, mldr, resnet, train, vit
from mmpretrain.models import TimmClassifier
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, distill_config
from mldr_kd_mm.apis.export import export_student
from mldr_kd_mm.engine.hooks import StopDistillHook
from mldr_kd_mm.models.losses import HardKDLoss
from mldr_kd_mm.models.taps.stages import distillation_tap
from mldr_kd_mm.registry import MODELS

SMOOTH = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
HARD = dict(
    loss=dict(type='HardKDLoss'),
    student='distillation_logits',
    teacher='logits',
    weight=0.5,
    name='deit',
)
DEIT = dict(losses=[HARD], student_loss_weight=0.5)
KD = dict(losses=[dict(loss=dict(type='KDLoss'), name='kd')])


def deit(**kwargs):
    """Config of a distilled DeiT with width 24 and two blocks."""
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2)
    model = dict(type='TimmClassifier', model_name='deit_tiny_distilled_patch16_224')
    return model | sizes | dict(num_classes=NUM_CLASSES) | kwargs


def distiller(student=None, **kwargs):
    torch.manual_seed(0)
    model = MODELS.build(mldr(student=student or deit(), neck=None, **(DEIT | kwargs)))
    for head in (model.teacher.model.head, model.student):
        for module in head.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.3)
    return model.train()


def gradients(loss, model):
    heads = (model.student.model.head, model.student.model.head_dist)
    found = torch.autograd.grad(loss, [head.weight for head in heads], allow_unused=True)
    return [grad is not None and bool(grad.any()) for grad in found]


def test_without_labels_the_class_head_would_stay_untrained():
    model = distiller()
    model.check_needs_no_label('DATA', some_have_one=True)
    message = "losses: deit: student='distillation_logits': labels must train .* DATA gives none; "
    with pytest.raises(ConfigError, match=message):
        model.check_needs_no_label('DATA', some_have_one=False)
    distiller(**KD, student_loss_weight=1.0).check_needs_no_label('DATA', some_have_one=False)


class TestHardKDLoss:
    def test_by_hand(self):
        student = torch.tensor([[0.6, 0.4], [0.1, 0.9]]).log()
        teacher = torch.tensor([[2.0, 1.0], [5.0, -1.0]])
        expected = -(math.log(0.6) + math.log(0.1)) / 2
        assert HardKDLoss()(student, teacher).item() == pytest.approx(expected)

    def test_heads_are_compared_one_by_one(self):
        students, teacher = torch.randn(3, 5, 7), torch.randn(5, 7)
        values = HardKDLoss()(students, teacher)
        assert_close(values, torch.stack([HardKDLoss()(each, teacher) for each in students]))
        assert_close(values[0], F.cross_entropy(students[0], teacher.argmax(1)))


class TestHeads:
    @pytest.fixture(scope='class')
    def model(self):
        return distiller(student=deit(loss=SMOOTH))

    @pytest.fixture(scope='class')
    def data(self, model):
        return model.data_preprocessor(batch(), True)

    def test_the_total_is_half_of_each_cross_entropy(self, model, data):
        total, log = model.parse_losses(model.loss(**data))
        network = model.student.model
        labels = torch.cat([sample.gt_label for sample in data['data_samples']])
        class_logits, other_logits = network.forward_head(network.forward_features(data['inputs']))
        decision = model.teacher(data['inputs'])['logits'].argmax(1)
        own = F.cross_entropy(class_logits, labels, label_smoothing=0.1)
        assert_close(total, own / 2 + F.cross_entropy(other_logits, decision) / 2)
        assert [*log] == ['loss', 'loss_student', 'loss_deit_distillation']
        assert_close(log['loss_student'], own / 2)

    def test_each_loss_trains_its_own_head(self, model, data):
        losses = model.loss(**data)
        assert gradients(losses['loss'], model) == [True, False]
        assert gradients(model.loss(**data)['loss_deit_distillation'], model) == [False, True]

    def test_the_prediction_is_the_mean(self, model, data):
        model.eval()
        with torch.no_grad():
            record = model.tapped_student(data['inputs'], ['logits', 'distillation_logits'])
            network = model.student.model
            own = network.head(network.forward_features(data['inputs'])[:, 0])
            samples = model.predict(data['inputs'], data['data_samples'])
        mean = (own + record['distillation_logits']) / 2
        assert_close(record['logits'], mean)
        assert_close(torch.stack([s.pred_score for s in samples]), mean.softmax(1))
        model.train()

    def test_copies_behave_alike(self, model, data):
        expected = model.loss(**data)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_close(other.train().loss(**data), expected)

    def test_the_labels_train_both_after_distillation(self, data):
        model = distiller()
        model.distillation_stopped = True
        losses = model.loss(**data)
        assert [*losses] == ['loss']
        assert gradients(losses['loss'], model) == [True, True]


@pytest.mark.parametrize(
    'fields',
    [KD, dict(losses=[dict(HARD, weight=0.0)]), dict(mldr(), neck=dict(type='MSDFNeck'))],
    ids=['kd', 'without weight', 'mldr'],
)
def test_without_a_loss_of_their_own_both_heads_get_all(fields):
    kept = {name: fields[name] for name in ('losses', 'neck') if name in fields}
    model = MODELS.build(mldr(student=deit(), **(dict(neck=None) | kept)))
    torch.nn.init.normal_(model.teacher.model.head.layers.head.weight)
    data = model.train().data_preprocessor(batch(), True)
    losses = model.loss(**data)
    assert gradients(losses['loss'], model) == [True, True]
    for name in ('loss_kd_logits', 'loss_dfra_logits'):
        if name in losses:
            assert gradients(model.loss(**data)[name], model) == [True, True]


@pytest.mark.parametrize(
    ('student', 'message'),
    [
        (resnet(), "losses: deit: student='distillation_logits': unknown tensor; available: "),
        (vit(), 'a student of timm with two heads has it, such as deit_tiny_distilled_patch16_224'),
    ],
)
def test_other_students_are_refused(student, message):
    with pytest.raises(ConfigError) as caught:
        distiller(student=student)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_a_negative_weight_of_the_own_loss_is_refused():
    with pytest.raises(ConfigError, match='student_loss_weight=-1: must be a non-negative number'):
        distiller(student_loss_weight=-1)


@pytest.mark.parametrize(
    ('name', 'path'),
    [
        ('levit_128s', 'model.head_dist'),
        ('efficientformer_l1', 'model.head_dist'),
        ('repvit_m1', 'model.head.head_dist'),
        ('swiftformer_xs', 'model.head_dist'),
        ('deit_tiny_patch16_224', None),
    ],
)
def test_families_of_timm(name, path):
    with torch.device('meta'):
        model = TimmClassifier(model_name=name, num_classes=7)
    assert distillation_tap(model) == path


def test_a_run_and_its_exported_student(tmp_path):
    """Two epochs with DeiT's method; timm's own model of the file predicts the mean."""
    model = mldr(student=deit(loss=SMOOTH), neck=None, **DEIT)
    runner = train(model, tmp_path / 'run', max_epochs=2)
    student = runner.model.student.eval()
    export_student(str(tmp_path / 'run/epoch_2.pth'), str(tmp_path / 'student'))
    exported = timm.create_model(f'local-dir:{tmp_path / "student"}', pretrained=True).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert_close(exported(images), student(images))
    heads = [student.model.head.weight, student.model.head_dist.weight]
    assert not torch.equal(*heads) and all(head.abs().sum() > 0 for head in heads)


def test_a_run_that_stops_to_distil(tmp_path):
    off = dict(val_dataloader=None, val_evaluator=None, val_cfg=None)
    hooks = [dict(type='StopDistillHook', stop_epoch=1)]
    model = mldr(student=deit(), neck=None, **DEIT)
    runner = train(model, tmp_path / 'run', max_epochs=2, custom_hooks=hooks, **off)
    assert any(isinstance(hook, StopDistillHook) for hook in runner.hooks)
    assert not runner.model.student.model.distilled_training


def test_distill_takes_such_a_student(tmp_path):
    data = image_folder(tmp_path / 'images', {'train': 4, 'val': 2})
    cfg = distill_config(
        'resnet10t',
        'deit_tiny_distilled_patch16_224',
        str(data),
        'deit',
        image_size=32,
        teacher_epochs=0,
        teacher_pretrained=False,
    )
    cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model)
    assert model.student_loss_weight == 0.5 and model.student.model.distilled_training
    assert model.student.loss_module.label_smooth_val == 0.1
