"""KD against its definition, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, kl, logit_pairs, many, normal
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import KDLoss


@many
@given(logit_pairs(), st.floats(0.5, 8))
def test_is_its_definition(pair, temperature):
    s, t = ((logits / temperature).tolist() for logits in pair)
    expected = temperature**2 * math.fsum(map(kl, s, t)) / len(s)
    assert close(KDLoss(temperature)(*pair), expected)


@many
@given(logit_pairs(), st.floats(-5, 5), st.floats(-5, 5))
def test_does_not_see_a_shift_of_a_sample(pair, shift, other_shift):
    shifted = KDLoss()(pair[0] + shift, pair[1] + other_shift)
    assert_close(shifted, KDLoss()(*pair), rtol=1e-9, atol=1e-12)


def test_gradient_is_the_difference_of_the_probabilities():
    """The difference is multiplied by the temperature: its square divided by it once."""
    student, teacher = normal(2, 4, 6)
    student.requires_grad_()
    KDLoss(temperature=4.0)(student, teacher).backward()
    expected = 4 * ((student / 4).softmax(-1) - (teacher / 4).softmax(-1)) / 4
    assert expected.abs().max() > 0.01
    # The second 4 is the batch size.
    assert_close(student.grad, expected.detach(), rtol=1e-9, atol=1e-12)


def test_sure_and_wrong_is_finite():
    student = torch.tensor([[1e4, -1e4, 0]], requires_grad=True)
    value = KDLoss()(student, -student.detach())
    value.backward()
    assert value.item() == 2e4
    assert student.grad.tolist() == [[1, -1, 0]]


@pytest.mark.parametrize('temperature', [0, -1, math.inf, math.nan, None, '1'])
def test_temperature_out_of_range(temperature):
    with pytest.raises(
        ConfigError, match=f'^temperature={temperature!r}: must be a positive number$'
    ):
        KDLoss(temperature=temperature)
