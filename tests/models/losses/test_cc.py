"""Correlation congruence against its definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, feature_pairs, many, normal
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import CCLoss


def affine(layer: nn.Linear, row: list[float]) -> list[float]:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [
        math.fsum(map(math.prod, zip(w, row, strict=True))) + b
        for w, b in zip(weight, bias, strict=True)
    ]


@many
@given(feature_pairs(), st.integers(1, 4))
def test_is_its_definition(pair, dim):
    loss = CCLoss(pair[0].shape[1], pair[1].shape[1], dim).double()
    deviations = [
        [abs(a - b) for a, b in zip(*embedded, strict=True)]
        for embedded in zip(
            [affine(loss.embed_student, row) for row in pair[0].tolist()],
            [affine(loss.embed_teacher, row) for row in pair[1].tolist()],
            strict=True,
        )
    ]
    values = [
        math.fsum(a * b for a, b in zip(one, following, strict=True))
        for one, following in itertools.pairwise(deviations)
    ]
    assert close(loss(*pair), math.fsum(values) / len(values) if values else 0.0)


def test_three_samples_by_hand():
    loss = CCLoss(student_width=2, teacher_width=1, dim=2)
    with torch.no_grad():
        loss.embed_student.weight.copy_(torch.tensor([[1.0, 0], [0, 2]]))
        loss.embed_student.bias.copy_(torch.tensor([0.0, 1]))
        loss.embed_teacher.weight.copy_(torch.tensor([[1.0], [-1]]))
        loss.embed_teacher.bias.copy_(torch.tensor([0.0, 0]))
    student = torch.tensor([[1.0, 0], [2, 1], [0, -1]], requires_grad=True)
    teacher = torch.tensor([[3.0], [1], [1]])
    # Student (1, 1), (2, 3), (0, -1), teacher (3, -3), (1, -1), (1, -1): deviations of
    # (-2, 4), (1, 4), (-1, 0).
    value = loss(student, teacher)
    assert value == ((2 * 1 + 4 * 4) + (1 * 1 + 4 * 0)) / 2
    value.backward()
    # Half the neighbours' deviations, (1, 4), (2 + 1, 4 + 0), (1, 4), with signs and weights.
    assert student.grad.tolist() == [[-0.5, 4], [1.5, 4], [-0.5, 0]]


def test_sees_the_order_of_the_batch():
    loss = CCLoss(4, 6, dim=8).double()
    student, teacher = normal(5, 4), normal(5, 6, seed=1)
    shuffled = loss(student[[2, 0, 4, 1, 3]], teacher[[2, 0, 4, 1, 3]])
    assert not torch.isclose(shuffled, loss(student, teacher), rtol=1e-3)
    assert_close(loss(student.flip(0), teacher.flip(0)), loss(student, teacher))


def test_width_is_128_unless_told():
    loss = CCLoss(4, 6)
    assert loss.embed_student.weight.shape == (128, 4)
    assert loss.embed_teacher.weight.shape == (128, 6)


class TestErrors:
    @pytest.mark.parametrize('field', ['student_width', 'teacher_width'])
    @pytest.mark.parametrize('width', [None, 0, -1, 2.0])
    def test_width(self, field, width):
        with pytest.raises(ConfigError, match=f'^{field}={width}: must be the width of the feat'):
            CCLoss(**dict(student_width=4, teacher_width=6) | {field: width})

    @pytest.mark.parametrize('dim', [0, -1, None, 1.5])
    def test_dim(self, dim):
        with pytest.raises(ConfigError, match=f'^dim={dim}: must be a positive integer$'):
            CCLoss(4, 6, dim)
