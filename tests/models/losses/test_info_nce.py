"""InfoNCE against its definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, feature_pairs, log_softmax, many, normal
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import InfoNCELoss


def made(student_width: int, teacher_width: int, dim: int = 3, **kwargs) -> InfoNCELoss:
    torch.manual_seed(0)
    widths = dict(student_width=student_width, teacher_width=teacher_width)
    return InfoNCELoss(dim=dim, **widths, **kwargs).double()


def embedded(layer: torch.nn.Linear, features: torch.Tensor) -> list[list[float]]:
    rows = []
    for row in (features @ layer.weight.T + layer.bias).tolist():
        norm = max(math.sqrt(math.fsum(x * x for x in row)), 1e-12)
        rows.append([x / norm for x in row])
    return rows


@many
@given(feature_pairs(), st.floats(0.02, 5))
def test_is_its_definition(pair, temperature):
    student, teacher = pair
    loss = made(student.shape[1], teacher.shape[1], temperature=temperature)
    s, t = embedded(loss.embed_student, student), embedded(loss.embed_teacher, teacher)
    terms = []
    for i, row in enumerate(s):
        scores = [sum(a * b for a, b in zip(row, other, strict=True)) / temperature for other in t]
        terms.append(-log_softmax(scores)[i])
    # The temperature is stored as a float32 logarithm.
    assert math.isclose(
        loss(student, teacher).item(), math.fsum(terms) / len(terms), rel_tol=1e-5, abs_tol=1e-9
    )


def test_does_not_depend_on_the_order_of_the_samples():
    loss, student, teacher = made(4, 6), normal(5, 4), normal(5, 6, seed=1)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(loss(student[order], teacher[order]), loss(student, teacher))
    assert loss(student[order], teacher) != loss(student, teacher)


def test_temperature_is_learned_and_bounded():
    loss, student, teacher = made(4, 6), normal(5, 4), normal(5, 6, seed=1)
    loss(student, teacher).backward()
    assert loss.log_scale.grad != 0
    with torch.no_grad():
        loss.log_scale.fill_(20.0)
    assert close(loss(student, teacher), made(4, 6, temperature=0.01)(student, teacher).item())


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(temperature=0), 'temperature=0: must be a positive number'),
        (dict(dim=0), 'dim=0: must be a positive integer'),
        (dict(teacher_width=None), 'teacher_width=None: must be the width of the feature'),
    ],
    ids=str,
)
def test_arguments(wrong, message):
    with pytest.raises(ConfigError) as caught:
        InfoNCELoss(**dict(student_width=4, teacher_width=4) | wrong)
    assert str(caught.value).startswith(message)
