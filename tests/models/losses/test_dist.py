"""DIST against its definition and NumPy's correlation, and for constant rows and columns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, logit_pairs, many, normal, softmax
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import DISTLoss


def correlation(xs: list[float], ys: list[float]) -> float:
    """Return Pearson's correlation, with the authors' 1e-8 in the divisor; 0 for constants."""
    if len(set(xs)) == 1 or len(set(ys)) == 1:
        return 0.0
    xs, ys = ([x - math.fsum(v) / len(v) for x in v] for v in (xs, ys))
    norms = [math.sqrt(math.fsum(x * x for x in v)) for v in (xs, ys)]
    return math.fsum(x * y for x, y in zip(xs, ys, strict=True)) / (math.prod(norms) + 1e-8)


def distance(student: list[list[float]], teacher: list[list[float]]) -> float:
    values = list(map(correlation, student, teacher))
    return 1 - math.fsum(values) / len(values)


def transposed(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


@many
@given(logit_pairs(), st.floats(0, 4), st.floats(0, 4), st.floats(0.5, 8))
def test_is_its_definition(pair, beta, gamma, temperature):
    s, t = (list(map(softmax, (logits / temperature).tolist())) for logits in pair)
    expected = beta * distance(s, t)
    if len(s) > 1:
        expected += gamma * distance(transposed(s), transposed(t))
    value = DISTLoss(beta, gamma, temperature)(*pair)
    # In a nearly constant row the rounding of the mean is visible.
    assert math.isclose(value.item(), temperature**2 * expected, rel_tol=1e-6, abs_tol=1e-6)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_is_one_minus_numpys_correlation(temperature):
    student, teacher = normal(2, 6, 5)
    p, q = ((z / temperature).softmax(-1).numpy() for z in (student, teacher))
    rows = np.mean([1 - np.corrcoef(*pair)[0, 1] for pair in zip(p, q, strict=True)])
    columns = np.mean([1 - np.corrcoef(*pair)[0, 1] for pair in zip(p.T, q.T, strict=True)])
    # The authors' 1e-8 in the divisor.
    tolerance = dict(rel=1e-5)
    for beta, gamma in ((1, 0), (0, 1), (2, 3)):
        value = DISTLoss(beta, gamma, temperature)(student, teacher)
        expected = temperature**2 * (beta * rows + gamma * columns)
        assert value.item() == pytest.approx(expected, **tolerance)


@pytest.mark.parametrize('temperature', [0.25, 0.5])
def test_confident_models_equal_the_authors_code(temperature):
    """The probabilities of classes that no image of the batch shows are nearly constant."""

    def pearson(p, q):
        p, q = (x - x.mean(1, keepdim=True) for x in (p, q))
        return ((p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1) + 1e-8)).mean()

    student, teacher = normal(2, 16, 100, scale=3.0)
    student[:, 60:] -= 12
    student.requires_grad_()
    p, q = ((z / temperature).softmax(1) for z in (student, teacher))
    assert ((p - p.mean(0)).norm(dim=0) < 1e-7).sum() > 20
    expected = temperature**2 * (2 - pearson(p, q) - pearson(p.T, q.T))
    value = DISTLoss(temperature=temperature)(student, teacher)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (value, expected)]
    assert_close(value, expected, rtol=1e-12, atol=0)
    assert_close(*gradients, rtol=1e-9, atol=1e-14)


@many
@given(logit_pairs())
def test_a_weight_of_zero_leaves_out_its_term(pair):
    rows, columns = DISTLoss(1.0, 0.0)(*pair), DISTLoss(0.0, 1.0)(*pair)
    assert close(DISTLoss(2.0, 3.0)(*pair), (2 * rows + 3 * columns).item())


class TestConstant:
    """Constant rows and columns have no correlation and no gradient."""

    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize('classes', [3, 100, 1000])
    def test_a_head_that_starts_at_zero(self, classes, dtype):
        student = torch.full((4, classes), 0.1, dtype=dtype, requires_grad=True)
        value = DISTLoss()(student, normal(4, classes, dtype=dtype))
        value.backward()
        assert value == 2
        assert not student.grad.any()

    def test_a_teacher_without_opinion(self):
        student = normal(4, 5).requires_grad_()
        value = DISTLoss()(student, torch.zeros(4, 5, dtype=torch.float64))
        value.backward()
        assert value == 2
        assert not student.grad.any()

    def test_one_row(self):
        """A constant row counts as 0 and gets no gradient; the other rows are unaffected."""
        student, teacher = normal(2, 4, 5)
        student[1] = 3
        student.requires_grad_()
        value = DISTLoss(beta=1.0, gamma=0.0)(student, teacher)
        value.backward()
        others = DISTLoss(beta=1.0, gamma=0.0)(student[[0, 2, 3]], teacher[[0, 2, 3]])
        assert_close(value, (1 + 3 * others) / 4, rtol=1e-9, atol=0)
        assert not student.grad[1].any()
        assert student.grad[[0, 2, 3]].abs().sum(-1).min() > 1e-3

    def test_all_columns(self):
        """A student that predicts the same for every sample."""
        student, teacher = normal(2, 4, 5)
        student = student[:1].repeat(4, 1).requires_grad_()
        value = DISTLoss(beta=0.0, gamma=1.0)(student, teacher)
        value.backward()
        assert value == 1
        assert not student.grad.any()


class TestErrors:
    @pytest.mark.parametrize('field', ['beta', 'gamma'])
    @pytest.mark.parametrize('weight', [-1, math.inf, math.nan, None])
    def test_weight(self, field, weight):
        with pytest.raises(ConfigError, match=f'^{field}={weight}: must be a non-negative number$'):
            DISTLoss(**{field: weight})

    @pytest.mark.parametrize('temperature', [0, -1, math.nan])
    def test_temperature(self, temperature):
        with pytest.raises(ConfigError, match='^temperature=.*: must be a positive number$'):
            DISTLoss(temperature=temperature)
