"""One entry of a Distiller's losses."""

import pytest
import torch
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, DFRALoss
from mldr_kd_mm.models.distillers.loss_entry import Comparison, Probe


def compare(record, loss, *args, **kwargs):
    """A comparison that is built for what it is to compare."""
    tensors = ({name: t[..., :1, :] for name, t in of_model.items()} for of_model in record)
    comparison = Comparison(dict(type=loss), *args, **kwargs)
    return comparison.build(*(Probe(of_model, {}) for of_model in tensors))


@pytest.fixture
def record():
    """The named tensors of a student with four stages, and of its teacher."""
    torch.manual_seed(0)
    student = dict(
        logits=torch.randn(5, 7), stage_logits=torch.randn(4, 5, 7), fused_logits=torch.randn(5, 7)
    )
    return student, dict(logits=torch.randn(5, 7))


def test_one_call_for_all_heads(record):
    student, teacher = record
    comparison = compare(record, 'DFRALoss', list(student), 'logits', 1.0, 'dfra')
    calls = []
    comparison.losses[0].register_forward_hook(lambda _, args, __: calls.append(args[0].shape))
    values = comparison(student, teacher)
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
    comparison = compare(record, 'DFRALoss', list(student), weight=[0, 2, 0.5])
    for (name, value), weight in zip(
        comparison(student, teacher).items(), [0, 2, 2, 2, 2, 0.5], strict=True
    ):
        assert_close(value, weight * ones[name])


@pytest.mark.parametrize('weight', [-1, [1, 1], [1, 1, -1], float('nan')])
def test_wrong_weight(record, weight):
    with pytest.raises(ConfigError, match='losses: kd: weight=.*must be a number of 0 or more'):
        Comparison(dict(type='DFRALoss'), list(record[0]), weight=weight)


def test_shapes_that_differ(record):
    student, teacher = record
    comparison = compare(record, 'DFRALoss', ['logits', 'stage_logits'])
    student['logits'] = torch.randn(5, 6)
    with pytest.raises(ConfigError, match=r'different shapes: logits \(5, 6\), stage1 \(5, 7\)'):
        comparison(student, teacher)
