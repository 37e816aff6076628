"""Helpers that the losses share."""

from __future__ import annotations

import inspect
import statistics

import pytest
import torch
from hypothesis import given
from loss_helpers import close, kl, logit_pairs, many, normal
from torch import nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models import losses
from mldr_kd_mm.models.losses.common import (
    at_least_float32,
    class_of,
    full_precision,
    kl_div,
    standardize,
)


class Product(nn.Module):
    """A loss in the form in which users write one."""

    @full_precision
    def forward(self, student, teacher, target=None, *, power: int = 1):
        """Return a product."""
        self.seen = student.dtype, teacher.dtype, torch.is_autocast_enabled('cpu')
        self.target = target
        return (student @ teacher) ** power


class TestFullPrecision:
    @pytest.mark.parametrize(
        ('given', 'used'),
        [
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
        ids=str,
    )
    def test_dtype(self, given, used):
        loss = Product()
        with torch.autocast('cpu', torch.bfloat16):
            value = loss(torch.ones(2, 2, dtype=given), torch.ones(2, 2, dtype=given))
            assert torch.is_autocast_enabled('cpu')
        assert loss.seen == (used, used, False)
        assert value.dtype == used

    def test_the_teacher_is_detached(self):
        student, teacher = (normal(3, 3, seed=seed).requires_grad_() for seed in (0, 1))
        Product()(student, teacher).sum().backward()
        assert student.grad is not None
        assert teacher.grad is None

    def test_passes_on_what_else_is_given(self):
        loss, twos = Product(), 2 * torch.ones(1, 1)
        target = object()
        assert loss(twos, twos, target, power=3) == 64
        assert loss.target is target
        assert loss(student=twos, teacher=twos, target=None) == 4
        assert loss.target is None

    def test_keeps_name_docstring_and_signature(self):
        """The Distiller reads from the signature which labels a loss needs."""
        assert Product.forward.__name__ == 'forward'
        assert Product.forward.__doc__ == 'Return a product.'
        parameters = inspect.signature(Product().forward).parameters
        assert list(parameters) == ['student', 'teacher', 'target', 'power']

    @pytest.mark.parametrize(
        ('name', 'more'), [('OFALoss', ['target']), ('CRDLoss', ['index']), ('KDLoss', [])]
    )
    def test_of_the_losses(self, name, more):
        parameters = inspect.signature(getattr(losses, name).forward).parameters
        assert list(parameters) == ['self', 'student', 'teacher', *more]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_at_least_float32(dtype):
    tensor = torch.tensor([1.5, -2.0], dtype=dtype)
    raised = at_least_float32(tensor)
    assert raised.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert raised.tolist() == [1.5, -2.0]


class TestKlDiv:
    @many
    @given(logit_pairs())
    def test_is_its_definition(self, pair):
        expected = list(map(kl, *(logits.tolist() for logits in pair)))
        values = kl_div(*pair)
        assert values.shape == (len(expected),)
        assert all(map(close, values, expected))

    def test_any_number_of_heads(self):
        student, teacher = normal(3, 4, 5), normal(4, 5, seed=1)
        expected = torch.stack([kl_div(head, teacher) for head in student])
        assert_close(kl_div(student, teacher), expected)


class TestStandardize:
    def test_mean_and_deviation(self):
        for row in standardize(normal(4, 6) * 7 + 3).tolist():
            assert statistics.fmean(row) == pytest.approx(0, abs=1e-12)
            assert statistics.stdev(row) == pytest.approx(1, rel=1e-6)

    def test_heads_are_alike(self):
        logits = normal(3, 4, 6)
        expected = torch.stack([standardize(head) for head in logits])
        assert_close(standardize(logits), expected, rtol=1e-12, atol=1e-15)

    @pytest.mark.parametrize('value', [0.0, 3.0])
    def test_equal_logits_become_zeros(self, value):
        assert not standardize(torch.full((2, 5), value)).any()


class TestTarget:
    def test_labels(self):
        labels = torch.tensor([2, 0, 1])
        assert class_of(labels, torch.zeros(3, 3)).tolist() == [2, 0, 1]

    def test_soft_labels(self):
        soft = torch.tensor([[0.25, 0.5, 0.25], [0.75, 0, 0.25]])
        assert class_of(soft, torch.zeros(2, 3)).tolist() == [1, 0]

    @pytest.mark.parametrize('label', [-1, 3, 100])
    def test_label_outside_the_classes(self, label):
        with pytest.raises(ConfigError) as caught:
            class_of(torch.tensor([1, label]), torch.zeros(2, 3))
        assert str(caught.value) == f'target=[1, {label}]: must be within 0..2'

    @pytest.mark.parametrize('shape', [(2, 4), (2, 1), (2, 3, 1), (), (1,), (3,), (1, 3)])
    def test_of_another_shape(self, shape):
        with pytest.raises(ConfigError) as caught:
            class_of(torch.zeros(shape), torch.zeros(2, 3))
        assert str(caught.value) == (
            f'target: has shape {shape}; must be labels (2,) or soft labels (2, 3)'
        )
