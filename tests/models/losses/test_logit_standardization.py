"""Logit standardisation against its definition, and its invariances."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, kl, logit_pairs, many, normal
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import KDLoss, LogitStandardizationLoss


def standardized(numbers: list[float]) -> list[float]:
    mean, deviation = statistics.fmean(numbers), statistics.stdev(numbers)
    return [(x - mean) / (max(deviation, 0.01) + 1e-7) for x in numbers]


def spread(pair: tuple[torch.Tensor, torch.Tensor], least: float = 0.01):
    """Replace the logits of samples whose logits are nearly equal."""
    apart = least * torch.arange(pair[0].shape[1], dtype=torch.float64) ** 2
    return tuple(torch.where(x.std(-1, keepdim=True) < least, apart, x) for x in pair)


@many
@given(logit_pairs(), st.floats(0.5, 8))
def test_is_its_definition(pair, temperature):
    pair = spread(pair)
    s, t = ([[x / temperature for x in standardized(r)] for r in z.tolist()] for z in pair)
    expected = temperature**2 * math.fsum(map(kl, s, t)) / len(s)
    assert close(LogitStandardizationLoss(temperature)(*pair), expected)


@many
@given(logit_pairs(), st.data())
def test_does_not_see_scale_and_shift_of_a_sample(pair, data):
    pair = spread(pair, least=1.0)
    batch = len(pair[0])
    loss = LogitStandardizationLoss()
    moved = []
    for logits in pair:
        scales = data.draw(st.lists(st.floats(0.5, 20), min_size=batch, max_size=batch))
        shifts = data.draw(st.lists(st.floats(-50, 50), min_size=batch, max_size=batch))
        moved.append(logits * torch.tensor(scales)[:, None] + torch.tensor(shifts)[:, None])
    # The 1e-7 that is added to the deviation is not scaled.
    assert_close(loss(*moved), loss(*pair), rtol=1e-5, atol=1e-6)


def test_kd_sees_scale():
    """The test above would pass for a loss that ignores its inputs; this one would not."""
    student, teacher = normal(2, 4, 6)
    assert not torch.isclose(KDLoss()(2 * student, teacher), KDLoss()(student, teacher), rtol=0.1)
    assert LogitStandardizationLoss()(student, teacher) > 0.1


def test_default_temperature_is_two():
    student, teacher = normal(2, 4, 6)
    assert_close(
        LogitStandardizationLoss()(student, teacher),
        LogitStandardizationLoss(temperature=2.0)(student, teacher),
        rtol=0,
        atol=0,
    )
    assert LogitStandardizationLoss().temperature == 2


def test_constant_logits_are_finite():
    """A student whose head starts at zero counts as one with uniform probabilities."""
    student, teacher = torch.zeros(4, 6, requires_grad=True), normal(4, 6, dtype=torch.float32)
    value = LogitStandardizationLoss()(student, teacher)
    value.backward()
    rows = torch.tensor([standardized(row) for row in teacher.tolist()])
    assert_close(value, KDLoss(temperature=2.0)(torch.zeros(4, 6), rows), rtol=1e-5, atol=0)
    assert student.grad.isfinite().all()


def test_a_head_that_starts_at_zero_gets_a_gradient_of_usual_size():
    student, teacher = torch.zeros(4, 6, requires_grad=True), normal(4, 6, dtype=torch.float32)
    LogitStandardizationLoss()(student, teacher).backward()
    # Without the lower limit of the deviation it would be 7e5.
    assert student.grad.abs().max() < 10


@pytest.mark.parametrize('temperature', [0, -1, math.inf, math.nan, None, '1'])
def test_temperature_out_of_range(temperature):
    with pytest.raises(
        ConfigError, match=f'^temperature={temperature!r}: must be a positive number$'
    ):
        LogitStandardizationLoss(temperature=temperature)
