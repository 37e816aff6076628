"""RSD against its definition, and its decoupler."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, feature_pairs, many, normal
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import RSDLoss


def plain(width: int, kappa: float = 0.01) -> RSDLoss:
    return RSDLoss(kappa, decoupler=False, student_width=width, teacher_width=width)


def standardized_columns(features: torch.Tensor) -> list[list[float]]:
    columns = []
    for column in features.T.tolist():
        mean, deviation = statistics.fmean(column), statistics.pstdev(column)
        columns.append([(x - mean) / (deviation + 1e-5) for x in column])
    return columns


def naive(student: torch.Tensor, teacher: torch.Tensor, kappa: float) -> float:
    s, t = standardized_columns(student), standardized_columns(teacher)
    value = 0.0
    for i, teachers in enumerate(t):
        for j, students in enumerate(s):
            products = (a * b for a, b in zip(teachers, students, strict=True))
            correlation = math.fsum(products) / len(student)
            value += (correlation - 1) ** 2 if i == j else kappa * correlation**2
    return value


@many
@given(feature_pairs(same_width=True).filter(lambda pair: len(pair[0]) > 1), st.floats(0, 2))
def test_is_its_definition(pair, kappa):
    assert close(plain(pair[0].shape[1], kappa)(*pair), naive(*pair, kappa))


def test_is_its_definition_after_the_decoupler():
    loss = RSDLoss(student_width=3, teacher_width=5).double()
    student, teacher = normal(6, 3), normal(6, 5, seed=1)
    first, norm, _, last = loss.decoupler
    hidden = student @ first.weight.T
    deviation = (hidden.var(0, correction=0) + norm.eps).sqrt()
    hidden = nn.functional.gelu((hidden - hidden.mean(0)) / deviation)
    assert close(loss(student, teacher), naive(hidden @ last.weight.T, teacher, 0.01))


def test_without_kappa_only_the_diagonal_counts():
    student, teacher = normal(2, 6, 4)
    diagonal = sum(naive(student[:, [i]], teacher[:, [i]], 0.0) for i in range(student.shape[1]))
    assert close(plain(4, kappa=0.0)(student, teacher), diagonal)
    assert plain(4, kappa=1.0)(student, teacher) > diagonal + 0.1


def test_does_not_see_shift_and_scale_of_a_dimension():
    student, teacher = normal(2, 6, 4)
    scale, shift = torch.tensor([0.5, 1, 3, 9]), torch.tensor([-9.0, 0, 1, 5])
    value = plain(4)(student, teacher)
    # The 1e-5 that is added to the deviation is not scaled.
    assert_close(plain(4)(student * scale + shift, teacher), value, rtol=1e-3, atol=0)
    assert not torch.isclose(plain(4)(student[:, [1, 0, 2, 3]], teacher), value, rtol=1e-2)


def test_a_dead_unit_is_finite():
    """A dead unit correlates with nothing."""
    student, teacher = normal(2, 6, 4, dtype=torch.float32)
    student[:, 2] = 3.0
    student.requires_grad_()
    value = plain(4)(student, teacher)
    value.backward()
    others = [0, 1, 3]
    expected = plain(3)(student[:, others], teacher[:, others])
    # The unit's own term is 1; the others are the teacher's unit with the student's other units.
    assert_close(value, expected + 1, rtol=0.02, atol=0)
    assert value > expected + 1
    assert student.grad.isfinite().all()
    assert student.grad[:, others].any()


def test_heads_are_compared_one_by_one():
    """Three heads at once give the value and the gradient of each."""
    students, teacher = normal(3, 6, 4).requires_grad_(), normal(6, 4, seed=1)
    values = plain(4)(students, teacher)
    assert_close(values, torch.stack([plain(4)(student, teacher) for student in students]))
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(values @ weights, students)
    for head, weight, student in zip(gradient, weights, students, strict=True):
        (own,) = torch.autograd.grad(weight * plain(4)(student, teacher), student)
        assert_close(head, own)


class TestDecoupler:
    def test_layers(self):
        decoupler = RSDLoss(student_width=6, teacher_width=10).decoupler
        assert [type(layer) for layer in decoupler] == [
            nn.Linear,
            nn.BatchNorm1d,
            nn.GELU,
            nn.Linear,
        ]
        shapes = {name: tuple(value.shape) for name, value in decoupler.named_parameters()}
        # Only BatchNorm has a bias.
        assert shapes == {
            '0.weight': (12, 6),
            '1.weight': (12,),
            '1.bias': (12,),
            '3.weight': (10, 12),
        }
        assert decoupler[2].approximate == 'none'

    def test_is_there_unless_told(self):
        assert isinstance(RSDLoss(student_width=4, teacher_width=4).decoupler, nn.Sequential)

    def test_none_has_no_state(self):
        assert not plain(4).state_dict()

    def test_refuses_a_batch_of_one(self):
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            RSDLoss(student_width=3, teacher_width=5)(torch.ones(1, 3), torch.ones(1, 5))


class TestErrors:
    def test_heads_with_a_decoupler(self):
        loss = RSDLoss(student_width=4, teacher_width=4)
        with pytest.raises(ConfigError, match=r'^features: student \(2, 3, 4\), .* \(B, D\)'):
            loss(torch.zeros(2, 3, 4), torch.zeros(3, 4))

    def test_features_of_other_widths(self):
        with pytest.raises(ConfigError, match='^features: student .*: must have equal widths$'):
            plain(4)(torch.zeros(3, 4), torch.zeros(3, 5))

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            (dict(decoupler=False, teacher_width=6), 'decoupler=False: must be True, as the '),
            (dict(decoupler='no'), "decoupler='no': must be True or False"),
            (dict(student_width=None), 'student_width=None: must be the width of the feature'),
            (dict(teacher_width=2.0), 'teacher_width=2.0: must be the width of the feature'),
            (dict(kappa=math.nan), 'kappa=nan: must be a non-negative number'),
        ],
        ids=str,
    )
    def test_arguments(self, wrong, message):
        with pytest.raises(ConfigError) as caught:
            RSDLoss(**dict(student_width=4, teacher_width=4) | wrong)
        assert str(caught.value).startswith(message)
