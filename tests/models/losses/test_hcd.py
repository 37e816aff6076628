"""HCD against its definition, and its edge cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, feature_pairs, kl, log_softmax, many, normal
from torch import Tensor
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import HCDLoss


def made(student_width: int, teacher_width: int, num_classes: int, **kwargs) -> HCDLoss:
    torch.manual_seed(0)
    widths = dict(student_width=student_width, teacher_width=teacher_width)
    return HCDLoss(num_classes=num_classes, **widths, **kwargs).double()


def linear(layer: torch.nn.Linear, row: list[float]) -> list[float]:
    weights = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [math.fsum(w * x for w, x in zip(each, row, strict=True)) + b for each, b in weights]


def cosine(one: list[float], other: list[float]) -> float:
    norms = math.prod(math.sqrt(math.fsum(x * x for x in row)) for row in (one, other))
    return math.fsum(x * y for x, y in zip(one, other, strict=True)) / norms


def naive(loss: HCDLoss, student, teacher, target, student_logits, teacher_logits) -> float:
    """Compute the loss of features and labels by Python's own numbers, one sample at a time."""
    first, _, second, _ = loss.map
    classes = loss.num_classes
    values = []
    for f_s, f_t, y, z_s, z_t in zip(
        *(t.tolist() for t in (student, teacher, target, student_logits, teacher_logits)),
        strict=True,
    ):
        hidden = [max(x, 0.0) for x in linear(first, linear(loss.project, f_s) + f_t)]
        flat = linear(second, hidden)
        sub_logits = [flat[at : at + classes] for at in range(0, len(flat), classes)]
        terms = []
        for row in sub_logits:
            fused = [a + b for a, b in zip(row, z_t, strict=True)]
            terms.append(-log_softmax(fused)[y] + loss.kl_weight * kl(student=fused, teacher=z_s))
        others = [row[:y] + row[y + 1 :] for row in sub_logits]
        pairs = [max(cosine(a, b) - 0.5, 0.0) ** 2 for a, b in itertools.permutations(others, 2)]
        values.append(math.fsum(terms) / len(terms) + math.fsum(pairs) / max(len(pairs), 1))
    return math.fsum(values) / len(values)


@st.composite
def batches(draw) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Draw features of both models, and the labels and logits that go with them."""
    student, teacher = draw(feature_pairs())
    classes, seed = draw(st.integers(2, 5)), draw(st.integers(0, 99))
    labels = st.lists(st.integers(0, classes - 1), min_size=len(student), max_size=len(student))
    logits = {
        f'{side}_logits': normal(len(student), classes, seed=seed + i)
        for i, side in enumerate(('student', 'teacher'))
    }
    return student, teacher, dict(target=torch.tensor(draw(labels)), **logits)


@many
@given(batches(), st.integers(1, 4), st.floats(0, 8))
def test_is_its_definition(batch, sub_logits, kl_weight):
    student, teacher, more = batch
    classes = more['teacher_logits'].shape[1]
    loss = made(
        student.shape[1], teacher.shape[1], classes, sub_logits=sub_logits, kl_weight=kl_weight
    )
    assert close(loss(student, teacher, **more), naive(loss, student, teacher, **more))


def example(classes: int = 7, batch: int = 5) -> tuple[HCDLoss, list[Tensor], dict[str, Tensor]]:
    features = [normal(batch, 4), normal(batch, 6, seed=1)]
    more = dict(
        target=torch.tensor([0, 6, 3, 3, 1])[:batch] % classes,
        student_logits=normal(batch, classes, seed=2).requires_grad_(),
        teacher_logits=normal(batch, classes, seed=3).requires_grad_(),
    )
    return made(4, 6, classes), features, more


def test_maps_and_tokens_are_averaged():
    loss, (student, teacher), more = example()
    grid = student[:, :, None, None] + torch.tensor([[-1.0, 1.0], [2.0, -2.0]])
    expected = loss(student, teacher, **more)
    assert_close(loss(grid, teacher, **more), expected)
    assert_close(loss(grid.flatten(2).mT, teacher, **more), expected)


def test_gradient_reaches_the_students_logits_and_no_tensor_of_the_teacher():
    loss, (student, teacher), more = example()
    loss(student, teacher.requires_grad_(), **more).backward()
    assert more['student_logits'].grad.any()
    assert more['teacher_logits'].grad is None and teacher.grad is None


def test_the_label_is_left_out_of_the_cosine_by_exclusion():
    """Sub-logits that agree at the label's class, however large, are not similar by that."""
    loss, features, more = example()
    loss.kl_weight = 0.0
    last = loss.map[2]
    with torch.no_grad():
        last.weight.zero_()
        rows = normal(4, 7, seed=4) + 0.5 * normal(7, seed=5)
        rows[:, 2] = 1e9
        last.bias.copy_(rows.flatten())
        more['target'] = torch.full((5,), 2)
        value = loss(*features, **more)
        fused = more['teacher_logits'] + rows[:, None]
        entropy = -fused.log_softmax(-1)[..., 2].mean()
        others = [row[:2] + row[3:] for row in rows.tolist()]
        pairs = [max(cosine(a, b) - 0.5, 0) ** 2 for a, b in itertools.combinations(others, 2)]
    assert 0 < len([*filter(None, pairs)]) < 6
    assert close(value - entropy, math.fsum(pairs) / 6)


def test_soft_labels_of_one_class_are_that_class():
    loss, features, more = example()
    soft = torch.nn.functional.one_hot(more['target'], 7)
    for dtype in (torch.float32, torch.float64):
        value = loss(*features, **more | dict(target=soft.to(dtype)))
        assert_close(value, loss(*features, **more))


def test_cross_entropy_is_linear_in_soft_labels():
    loss, features, more = example()
    one, other = (
        torch.nn.functional.one_hot(t, 7).double() for t in (more['target'], 6 - more['target'])
    )
    mixed = loss(*features, **more | dict(target=0.75 * one + 0.25 * other))
    # The largest class is that of `one`, so that the other terms are those of `one`.
    sub_logits = loss.map(torch.cat([loss.project(features[0]), features[1]], -1))
    fused = (sub_logits + more['teacher_logits'][:, None]).log_softmax(-1)
    change = ((one - other)[:, None] * fused).sum(-1).mean()
    assert_close(mixed, loss(*features, **more) + 0.25 * change)


@pytest.mark.parametrize('weights', ['zero', 'equal'])
def test_gradients_are_finite_where_sub_logits_are_zero_or_equal(weights):
    loss, (student, teacher), more = example(classes=2)
    with torch.no_grad():
        loss.map[2].weight.zero_()
        loss.map[2].bias.fill_(0.0 if weights == 'zero' else 1.0)
    value = loss(student.requires_grad_(), teacher, **more)
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    # Equal vectors have a cosine of 1.
    others = 0.0 if weights == 'zero' else 0.25
    loss.kl_weight = 0.0
    fused = more['teacher_logits'] + loss.map[2].bias[0]
    assert close(
        loss(student, teacher, **more),
        (torch.nn.functional.cross_entropy(fused, more['target']) + others).item(),
    )


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(sub_logits=0), 'sub_logits=0: must be a positive integer'),
        (dict(kl_weight=-1), 'kl_weight=-1: must be a non-negative number'),
        (dict(num_classes=None), 'num_classes=None: must be a positive integer'),
        (dict(teacher_width=None), 'teacher_width=None: must be the width of the feature'),
    ],
    ids=str,
)
def test_arguments(wrong, message):
    with pytest.raises(ConfigError) as caught:
        HCDLoss(**dict(student_width=4, teacher_width=6, num_classes=7) | wrong)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (dict(student_logits=(5, 6)), r'student_logits: have shape \(5, 6\); must be \(5, 7\)'),
        (dict(teacher_logits=(4, 7)), r'teacher_logits: have shape \(4, 7\); must be \(5, 7\)'),
        (dict(teacher=(5, 6, 2, 2)), r'features: student \(5, 4\), teacher \(5, 6, 2, 2\): must'),
    ],
    ids=str,
)
def test_shapes(changed, message):
    loss, (student, teacher), more = example()
    tensors = dict(student=student, teacher=teacher) | more
    tensors |= {name: torch.zeros(shape) for name, shape in changed.items()}
    with pytest.raises(ConfigError, match=message):
        loss(**tensors)
