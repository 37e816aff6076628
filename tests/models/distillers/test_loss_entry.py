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
