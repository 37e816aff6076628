"""DKD against its definition, and its edge cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, kl, labelled_pairs, many, normal, softmax
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import DKDLoss, KDLoss, dkd


def binary_kl(student: list[float], teacher: list[float], target: int) -> float:
    """Return KL of the probabilities (target, all others)."""
    q, p = softmax(student), softmax(teacher)
    rest_q, rest_p = (math.fsum(x[:target] + x[target + 1 :]) for x in (q, p))
    pairs = ((p[target], q[target]), (rest_p, rest_q))
    return math.fsum(a * math.log(a / b) for a, b in pairs)


def without(numbers: list[float], position: int) -> list[float]:
    return numbers[:position] + numbers[position + 1 :]


def naive(student, teacher, target, alpha, beta, temperature) -> float:
    values = [
        alpha * binary_kl(s, t, y) + beta * kl(without(s, y), without(t, y))
        for s, t, y in zip(
            (student / temperature).tolist(),
            (teacher / temperature).tolist(),
            target.tolist(),
            strict=True,
        )
    ]
    return temperature**2 * math.fsum(values) / len(values)


@many
@given(labelled_pairs(), st.floats(0, 4), st.floats(0, 4), st.floats(0.5, 8))
def test_is_its_definition(batch, alpha, beta, temperature):
    loss = DKDLoss(alpha, beta, temperature)
    assert close(loss(*batch), naive(*batch, alpha, beta, temperature))


@many
@given(labelled_pairs())
def test_kd_is_the_sum_with_the_teachers_doubt_as_weight(batch):
    """Equation 5 of the paper, sample by sample."""
    for student, teacher, target in zip(*(tensor.split(1) for tensor in batch), strict=True):
        doubt = 1 - teacher.softmax(-1)[0, target.item()].item()
        assert_close(
            DKDLoss(alpha=1.0, beta=doubt)(student, teacher, target),
            KDLoss()(student, teacher),
            rtol=1e-8,
            atol=1e-10,
        )


@pytest.mark.parametrize('position', [0, 3, 6], ids=['first', 'middle', 'last'])
@pytest.mark.parametrize('heads', [(), (3,)], ids=['one', 'heads'])
def test_where_the_target_is_does_not_matter(position, heads):
    """Moving the target and its logits to another position changes nothing."""
    student, teacher = normal(*heads, 5, 7), normal(5, 7, seed=1)
    order = [2, *[c for c in range(7) if c != 2]]
    order.insert(position, order.pop(0))
    target = torch.full((5,), 2)
    moved = DKDLoss()(student[..., order], teacher[..., order], torch.full((5,), position))
    expected = DKDLoss()(student, teacher, target)
    assert_close(moved, expected, rtol=1e-12, atol=0)
    assert not torch.isclose(DKDLoss()(student, teacher, target + 1), expected, rtol=1e-3).any()


def test_soft_labels_take_the_largest():
    student, teacher = normal(2, 4, 6)
    target = torch.tensor([0, 5, 2, 3])
    soft = 0.6 * F.one_hot(target, 6) + 0.4 * F.one_hot((target + 1) % 6, 6)
    assert_close(
        DKDLoss()(student, teacher, soft), DKDLoss()(student, teacher, target), rtol=0, atol=0
    )


def test_of_two_classes_the_target_is_all():
    """The only other class has probability 1."""
    student, teacher = normal(2, 4, 2)
    student.requires_grad_()
    target = torch.tensor([0, 1, 1, 0])
    value = DKDLoss(alpha=1.0, beta=8.0)(student, teacher, target)
    assert_close(value, KDLoss()(student, teacher), rtol=1e-9, atol=0)
    others = DKDLoss(alpha=0.0, beta=8.0)(student, teacher, target)
    others.backward()
    assert others == 0
    assert not student.grad.any()


@pytest.mark.parametrize('target', [0, 1, 3])
def test_large_logits_stay_exact(target):
    """A large constant as a mask would be no larger than these logits."""
    student = torch.tensor([[1e4, -1e4, 3, -2], [-1e4, 2, 1e4, 9998]], requires_grad=True)
    teacher = torch.tensor([[9999, -1e4, 2, 0], [-1e4, 1, 9999, 1e4]])
    labels = torch.tensor([target, target])
    value = DKDLoss()(student, teacher, labels)
    value.backward()
    exact = student.detach().double().requires_grad_()
    expected = DKDLoss()(exact, teacher.double(), labels)
    expected.backward()
    assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
    assert_close(student.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)
    assert value > 0.1


def test_a_large_target_leaves_the_others_exact():
    student = torch.tensor([[1e4, 3.3, -1.2, 0.7]])
    teacher = torch.tensor([[1e4, -2.1, 0.4, 1.9]])
    value = DKDLoss(alpha=0.0, beta=1.0)(student, teacher, torch.tensor([0]))
    expected = KDLoss()(student[:, 1:], teacher[:, 1:])
    assert_close(value, expected, rtol=1e-6, atol=0)


class TestErrors:
    @pytest.mark.parametrize('field', ['alpha', 'beta'])
    @pytest.mark.parametrize('weight', [-1, math.inf, math.nan, None])
    def test_weight(self, field, weight):
        with pytest.raises(ConfigError, match=f'^{field}={weight}: must be a non-negative number$'):
            DKDLoss(**{field: weight})

    @pytest.mark.parametrize('temperature', [0, -1, math.nan])
    def test_temperature(self, temperature):
        with pytest.raises(ConfigError, match='^temperature=.*: must be a positive number$'):
            DKDLoss(temperature=temperature)

    @pytest.mark.parametrize('label', [-1, 5])
    def test_label_outside_the_classes(self, label):
        student, teacher = normal(2, 2, 5)
        with pytest.raises(ConfigError, match=rf'^target=\[0, {label}\]: must be within 0\.\.4$'):
            DKDLoss()(student, teacher, torch.tensor([0, label]))


def test_with_two_classes_it_is_kd(monkeypatch):
    logged = []
    monkeypatch.setattr(dkd, 'print_log', lambda message, *args: logged.append(message))
    student, teacher = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0)).unbind()
    loss = DKDLoss(alpha=3.0, beta=8.0, temperature=4.0)
    for _ in range(2):
        found = loss(student, teacher, torch.tensor([0, 1] * 3))
    torch.testing.assert_close(found, 3 * KDLoss(temperature=4.0)(student, teacher))
    assert logged == ['DKDLoss: with 2 classes it equals alpha * KDLoss, and beta has no effect']
