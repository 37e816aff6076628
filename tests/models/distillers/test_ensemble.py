"""Several teachers: their mean, their own tensors, and errors in their configs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import NORMALIZATION, batch, mldr, resnet, vit
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.distillers.ensemble import mean_logits
from mldr_kd_mm.registry import MODELS

KD = dict(loss=dict(type='KDLoss'), name='kd')
SWIN = dict(  # its image size is fixed
    type='TimmClassifier',
    model_name='swin_tiny_patch4_window7_224',
    num_classes=10,
    img_size=64,
    embed_dim=12,
    depths=[1, 1, 1, 1],
    num_heads=[1, 1, 1, 1],
)
OF_FIRST = dict(loss=dict(type='KDLoss'), teacher='teacher1.logits', name='first')
OF_SECOND = dict(loss=dict(type='RKDLoss'), student='feature', teacher='teacher2.feature')
TEACHERS = [vit(), resnet(data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3))]


def logits(seed, rows=5, classes=7):
    return 4 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def distiller(losses=(KD,), **kwargs):
    config = mldr(neck=None, losses=list(losses))
    config.update(copy.deepcopy(dict(teacher=TEACHERS) | kwargs))
    model = MODELS.build(config)
    for teacher in getattr(model.teacher, 'teachers', ()):
        for module in teacher.model.head.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)
    return model


class TestMean:
    def test_by_hand(self):
        one, other = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()
        assert_close(mean_logits([one, other], [0.5, 0.5]).exp(), torch.tensor([[0.6, 0.4]]))
        assert_close(mean_logits([one, other], [0.75, 0.25]).exp(), torch.tensor([[0.7, 0.3]]))

    def test_one_teacher_twice_is_that_teacher(self):
        own = logits(0)
        assert_close(mean_logits([own, own + 3], [0.3, 0.7]), own.log_softmax(-1))

    def test_order_and_constants_do_not_matter(self):
        one, other = logits(0), logits(1)
        mean = mean_logits([one, other], [0.3, 0.7])
        assert_close(mean_logits([other - 5, one + 2], [0.7, 0.3]), mean)

    def test_a_weight_of_zero_leaves_a_teacher_out(self):
        one, other = logits(0), torch.full((5, 7), float('nan'))
        assert_close(mean_logits([one, other], [1.0, 0.0]), one.log_softmax(-1))

    def test_certain_teachers_of_different_opinions_stay_finite(self):
        one, other = torch.tensor([[3e4, -3e4, 0.0]]), torch.tensor([[-3e4, 3e4, 0.0]])
        mean = mean_logits([one.half(), other.half()], [0.5, 0.5])
        assert mean.dtype == torch.float32 and mean.isfinite().all()
        assert_close(mean.exp(), torch.tensor([[0.5, 0.5, 0.0]]))


class TestDistiller:
    @pytest.fixture(scope='class')
    def model(self):
        return distiller([KD, OF_FIRST, dict(OF_SECOND, name='rkd')], teacher_weights=[1, 3])

    def test_each_teacher_sees_its_own_images(self, model):
        data = model.data_preprocessor(batch(), True)
        given = model.run_teacher(data['inputs'])
        vit_, resnet_ = (each.model for each in model.teacher.teachers)
        pixels = data['inputs'] * 64 + 127
        first, second = vit_(data['inputs'], mode='tensor'), resnet_(pixels / 255, mode='tensor')
        assert [*given] == ['logits', 'teacher1.logits', 'teacher2.feature']
        assert_close(given['teacher1.logits'], first)
        expected = (first.softmax(-1) + 3 * second.softmax(-1)) / 4
        assert_close(given['logits'].exp(), expected, rtol=1e-4, atol=1e-6)

    def test_the_losses_read_their_teachers(self, model):
        data = model.data_preprocessor(batch(), True)
        losses = model.loss(**data)
        assert [*losses] == ['loss', 'loss_kd_logits', 'loss_first_logits', 'loss_rkd_feature']
        given = model.eval().run_teacher(data['inputs'])
        student, losses = model.student(data['inputs']), model.loss(**data)
        for name, teacher in (('kd', 'logits'), ('first', 'teacher1.logits')):
            value = MODELS.build(KD['loss'])(student, given[teacher])
            assert_close(losses[f'loss_{name}_logits'], value)
        model.train()

    def test_the_student_and_the_state_are_as_with_one(self):
        built = []
        for teacher in (TEACHERS, vit()):
            torch.manual_seed(0)
            built.append(MODELS.build(mldr(teacher=teacher)))
            built[-1].init_weights()
        several, one = built
        assert [*several.state_dict()] == [*one.state_dict()]
        pairs = zip(several.student.parameters(), one.student.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_copies_share_the_teachers_until_they_are_converted(self, model):
        other = copy.deepcopy(model)
        shared = model.teacher.teachers
        assert all(a is b for a, b in zip(other.teacher.teachers, shared, strict=True))
        other.double()
        assert {next(t.model.parameters()).dtype for t in shared} == {torch.float32}
        assert pickle.loads(pickle.dumps(other)).teacher.weights == [0.25, 0.75]
        data = other.data_preprocessor(batch(), True)
        assert other.run_teacher(data['inputs'])['logits'].dtype == torch.float64

    def test_predictions(self, model):
        data = model.data_preprocessor(batch(), False)
        found = {
            label: torch.stack([sample.pred_score for sample in samples])
            for label, samples in model.teacher.predictions(**_renamed(data))
        }
        assert [*found] == ['teacher1', 'teacher2', 'teacher']
        assert_close(found['teacher'], (found['teacher1'] + 3 * found['teacher2']) / 4)
        samples = model.predict_teacher(**data)
        assert [int(s.pred_label) for s in samples] == found['teacher'].argmax(1).tolist()

    def test_sizes_recorders_and_precisions_are_their_own(self):
        model = distiller(
            [
                dict(loss=dict(type='RKDLoss'), student='stage4', teacher=name, name=name)
                for name in ('teacher1.end', 'teacher2.stage3')
            ],
            teacher=[vit(img_size=48), resnet()],
            teacher_recorder=[dict(type='FeatureRecorder', taps=dict(end='backbone.ln1')), None],
            teacher_precision=['bf16', None],
            teacher_input_size=[None, (3, 40, 40)],
        )
        (_, first, own), (_, second, _) = model.teachers
        assert (first.size, second.size) == ((48, 48), (40, 40))
        assert (first.precision, second.precision, own) == ('bf16', None, ['end'])
        losses = model.loss(**model.data_preprocessor(batch(), True))
        assert losses['loss_teacher1.end_stage4'] > 0 and losses['loss_teacher2.stage3_stage4'] > 0

    def test_one_value_is_for_all(self):
        model = distiller(teacher=[resnet(), resnet()], teacher_input_size=(3, 24, 24))
        assert [each.size for _, each, _ in model.teachers] == [(24, 24), (24, 24)]


def _renamed(data):
    return dict(images=data['inputs'], data_samples=data['data_samples'])


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(teacher=[]), 'teacher=[]: must be a classifier, or a list of at least one'),
        (dict(teacher=[vit(), 'vit']), "teacher[1]='vit': must be a dict with a type"),
        (
            dict(teacher=[vit(), resnet(7)]),
            'num_classes: teacher1 has 10, teacher2 has 7; must be equal for logits, the mean of '
            'all teachers; name one of them, such as teacher2.logits',
        ),
        (dict(teacher_checkpoint='a.pth'), "teacher_checkpoint='a.pth': must be a list of 2"),
        (
            dict(teacher_checkpoint=['a.pth']),
            "teacher_checkpoint=['a.pth']: has 1 values; must have 2, one for each teacher",
        ),
        (dict(teacher_checkpoint=[None, 3]), 'teacher_checkpoint=3: must be a path or URL'),
        (dict(teacher_checkpoint=[None, 'lost.pth']), "teacher_checkpoint='lost.pth': there is"),
        (dict(teacher_precision=['fp32'] * 3), 'has 3 values; must have 2, one for each teacher'),
        (dict(teacher_precision=[None, 'int8']), "teacher_precision='int8': must be one of"),
        (
            dict(teacher_input_size=[(3, 32, 32), 5]),
            'teacher_input_size=5: must be 3 positive integers; a list has one (3, H, W) or None',
        ),
        (
            dict(teacher=[vit(), SWIN], teacher_input_size=[None, (3, 32, 32)]),
            "teacher[1]: does not run on images of 32 x 32 px (Input height (32) doesn't match mod",
        ),
        (dict(teacher_compile=[False, 'yes']), "teacher_compile='yes': must be True, False or"),
        (dict(teacher_recorder=[None, 4]), 'teacher_recorder=4: must be a dict with a type'),
        (dict(teacher_weights=[1, -1]), 'teacher_weights=[1, -1]: must be 2 non-negative numbers'),
        (dict(teacher_weights=[1]), 'teacher_weights=[1]: must be 2 non-negative numbers'),
        (dict(teacher_weights=[0, 0]), 'teacher_weights=[0, 0]: at least one must be'),
        (dict(teacher=vit(), teacher_weights=[1]), 'teacher_weights=[1]: must be None for one'),
        (dict(losses=[OF_FIRST]), 'teacher2: no loss reads it; name one of its tensors in a loss'),
        (
            dict(losses=[dict(KD, teacher='feature')]),
            "losses: kd: teacher='feature': unknown tensor; available: logits, teacher1.logits, ",
        ),
        (
            dict(losses=[KD, dict(OF_FIRST, teacher='teacher3.logits')]),
            "losses: first: teacher='teacher3.logits': unknown tensor; available: logits, ",
        ),
        (dict(teacher=vit(), losses=[OF_FIRST]), "teacher='teacher1.logits': unknown tensor"),
    ],
)
def test_mistakes_are_one_line(fields, message):
    with pytest.raises(ConfigError) as caught:
        distiller(**fields)
    assert message in str(caught.value) and '\n' not in str(caught.value)


def test_teachers_of_different_classes_can_give_other_tensors():
    losses = [OF_FIRST, dict(OF_SECOND, name='rkd')]
    model = distiller(losses, teacher=[vit(), resnet(7)])
    data = model.data_preprocessor(batch(), True)
    assert model.loss(**data)['loss_rkd_feature'] > 0
    measured = model.teacher.predictions(data['inputs'], data['data_samples'], num_classes=10)
    assert [label for label, _ in measured] == ['teacher1']  # there is no mean


def test_the_data_preprocessor_of_the_run_is_the_default():
    model = distiller(teacher=[vit(), vit()])
    for _, teacher, _ in model.teachers:
        assert teacher.model.data_preprocessor.mean.flatten().tolist() == NORMALIZATION['mean']
