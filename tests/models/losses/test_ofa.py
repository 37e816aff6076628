"""OFA's loss against its definition, and its properties."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, labelled_pairs, log_softmax, many, normal, softmax
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import OFALoss


def naive(student, teacher, labels: list[int], eps: float) -> float:
    """Compute the loss by its definition."""
    values = []
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        log_q, p = log_softmax(s), softmax(t)
        weights = [(p[c] + (c == label)) ** eps - (c == label) for c in range(len(s))]
        values.append(-math.fsum(w * x for w, x in zip(weights, log_q, strict=True)))
    return math.fsum(values) / len(values)


@many
@given(labelled_pairs(), st.floats(0.25, 3))
def test_is_its_definition(batch, eps):
    student, teacher, target = batch
    assert close(OFALoss(eps)(*batch), naive(student, teacher, target.tolist(), eps))


@many
@given(labelled_pairs(), st.floats(0.25, 3), st.floats(0.0625, 1))
def test_soft_labels_count_as_their_largest_class(batch, eps, share):
    student, teacher, target = batch
    classes = teacher.shape[1]
    soft = share * F.one_hot(target, classes) + (1 - share) / classes
    assert close(
        OFALoss(eps)(student, teacher, soft), naive(student, teacher, target.tolist(), eps)
    )


@many
@given(labelled_pairs())
def test_of_exponent_one_is_the_cross_entropy_with_the_teacher(batch):
    student, teacher, target = batch
    expected = F.cross_entropy(student, teacher.softmax(-1))
    assert_close(OFALoss(eps=1.0)(*batch), expected, rtol=1e-9, atol=1e-12)


def test_a_larger_exponent_pulls_harder_to_the_target():
    student, teacher = normal(2, 4, 6)
    target = torch.tensor([0, 5, 2, 3])
    pulls = []
    for eps in (1.0, 1.5, 2.0):
        logits = student.clone().requires_grad_()
        OFALoss(eps)(logits, teacher, target).backward()
        pulls.append(logits.grad[range(4), target])
    assert (pulls[0] > pulls[1]).all()
    assert (pulls[1] > pulls[2]).all()


def test_one_hot_labels_are_labels():
    student, teacher = normal(2, 4, 6)
    target = torch.tensor([0, 5, 2, 3])
    one_hot = F.one_hot(target, 6).float()
    loss = OFALoss(eps=1.5)
    value = loss(student, teacher, target)
    assert_close(loss(student, teacher, one_hot), value, rtol=1e-12, atol=0)
    assert not torch.isclose(loss(student, teacher, target.flip(0)), value, rtol=1e-3)


class TestErrors:
    @pytest.mark.parametrize('label', [-1, 5, 255])
    def test_label_outside_the_classes(self, label):
        student, teacher = normal(2, 2, 5)
        with pytest.raises(ConfigError, match=rf'^target=\[0, {label}\]: must be within 0\.\.4$'):
            OFALoss()(student, teacher, torch.tensor([0, label]))

    def test_soft_labels_of_other_classes(self):
        student, teacher = normal(2, 2, 5)
        with pytest.raises(ConfigError, match=r'^target: has shape \(2, 6\); must be labels'):
            OFALoss()(student, teacher, torch.ones(2, 6) / 6)

    @pytest.mark.parametrize('eps', [0, -1, math.inf, math.nan, None])
    def test_eps(self, eps):
        with pytest.raises(ConfigError, match=f'^eps={eps}: must be a positive number$'):
            OFALoss(eps)
