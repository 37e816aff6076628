"""An entry of a Distiller's losses."""

import pytest
import torch
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, DFRALoss
from mldr_kd_mm.models.distillers.loss_entry import LossEntry
from mldr_kd_mm.models.taps.tapped_model import Probe


def compare(record, loss, *args, **kwargs):
    """Return an entry that is built for the tensors of the record."""
    tensors = ({name: t[..., :1, :] for name, t in of_model.items()} for of_model in record)
    entry = LossEntry(dict(type=loss), *args, **kwargs)
    return entry.build(*(Probe(of_model, {}) for of_model in tensors))


@pytest.fixture
def record():
    """Return named tensors of a student with four stages and of its teacher."""
    torch.manual_seed(0)
    student = dict(
        logits=torch.randn(5, 7), stage_logits=torch.randn(4, 5, 7), fused_logits=torch.randn(5, 7)
    )
    return student, dict(logits=torch.randn(5, 7))


def test_one_call_for_all_heads(record):
    student, teacher = record
    entry = compare(record, 'DFRALoss', list(student), 'logits', 1.0, 'dfra')
    calls = []
    entry.losses[0].register_forward_hook(lambda _, args, __: calls.append(args[0].shape))
    values = entry(student, teacher)
    assert calls == [(6, 5, 7)]
    heads = dict(
        logits=student['logits'],
        **{f'stage{i + 1}': student['stage_logits'][i] for i in range(4)},
        fused=student['fused_logits'],
    )
    assert list(values) == [f'loss_dfra_{head}' for head in heads]
    for head, logits in heads.items():
        assert_close(values[f'loss_dfra_{head}'], DFRALoss()(logits, teacher['logits']))


def test_one_head(record):
    student, teacher = record
    values = compare(record, 'DFRALoss', 'fused_logits', weight=3, name='x')(student, teacher)
    expected = 3 * DFRALoss()(student['fused_logits'], teacher['logits'])
    assert_close(values, {'loss_x_fused': expected})


def test_stage_logits_of_one_stage(record):
    student, teacher = record
    student['stage_logits'] = student['stage_logits'][:1]
    values = compare(record, 'DFRALoss', 'stage_logits')(student, teacher)
    assert list(values) == ['loss_kd_stage1']


def test_stage_logits_in_pairs(record):
    """Each stage is a head of its own, as with one name of the teacher."""
    student, teacher = record
    one, pairs = (
        compare(record, 'DFRALoss', list(student), names, weight=[1, 2, 3])(student, teacher)
        for names in ('logits', ['logits'] * 3)
    )
    assert list(pairs) == list(one) and len(pairs) == 6
    assert_close(pairs, one)


def test_a_weight_for_each_name(record):
    student, teacher = record
    ones = compare(record, 'DFRALoss', list(student))(student, teacher)
    entry = compare(record, 'DFRALoss', list(student), weight=[0, 2, 0.5])
    for (name, value), weight in zip(
        entry(student, teacher).items(), [0, 2, 2, 2, 2, 0.5], strict=True
    ):
        assert_close(value, weight * ones[name])


def test_shapes_that_differ(record):
    student, teacher = record
    entry = compare(record, 'DFRALoss', ['logits', 'stage_logits'])
    student['logits'] = torch.randn(5, 6)
    with pytest.raises(ConfigError, match=r'different shapes, logits \(5, 6\), stage1 \(5, 7\)'):
        entry(student, teacher)


class TestLogitsBesideTheComparedTensors:
    """HCDLoss reads ``student_logits`` and ``teacher_logits`` besides the features."""

    STUDENT = dict(stage1=torch.ones(1, 3, 2, 2), stage2=torch.ones(1, 4, 5))
    TEACHER = dict(feature=torch.ones(1, 6))
    LOGITS = dict(logits=torch.ones(1, 7))

    def entry(self):
        stages = list(self.STUDENT)
        return LossEntry(dict(type='HCDLoss'), stages, ['feature'] * 2, name='hcd')

    def test_are_read_by_name(self):
        entry = self.entry()
        assert entry.reads('student') == ['stage1', 'stage2', 'logits']
        assert entry.reads('teacher') == ['feature', 'feature', 'logits']
        student, teacher = self.STUDENT | self.LOGITS, self.TEACHER | self.LOGITS
        entry.build(Probe(student, {}), Probe(teacher, {}))
        assert [loss.num_classes for loss in entry.losses] == [7, 7]
        target = torch.tensor([2])
        values = entry(student, teacher, target=target)
        expected = entry.losses[1](
            student['stage2'], teacher['feature'], target, student['logits'], teacher['logits']
        )
        assert list(values) == ['loss_hcd_stage1', 'loss_hcd_stage2']
        assert_close(values['loss_hcd_stage2'], expected)

    def test_are_read_by_no_other_loss(self):
        entry = LossEntry(dict(type='RSDLoss'), 'feature', 'feature')
        assert entry.reads('student') == entry.reads('teacher') == ['feature']

    def test_a_model_without_a_head(self):
        message = "losses: hcd: student='logits': the student has no head; available: stage1"
        with pytest.raises(ConfigError, match=message):
            self.entry().check_names(list(self.STUDENT), ['feature', 'logits'])
