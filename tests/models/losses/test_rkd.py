"""RKD against its definition, and its invariances."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from loss_helpers import close, feature_pairs, many, normal, smooth_l1
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import RKDLoss


def mean_distance(features: list[list[float]]) -> float:
    """Return the mean over all pairs of two samples; equal samples have the smallest distance."""
    pairs = [(f, g) for i, f in enumerate(features) for g in features[:i]]
    return math.fsum(max(math.dist(f, g), 1e-6) for f, g in pairs) / len(pairs)


def cosine(vertex: list[float], one: list[float], other: list[float]) -> float:
    """Return the cosine of the angle at the vertex; 0 if there is no angle."""
    u, v = ([a - b for a, b in zip(end, vertex, strict=True)] for end in (one, other))
    lengths = math.hypot(*u) * math.hypot(*v)
    return math.fsum(a * b for a, b in zip(u, v, strict=True)) / lengths if lengths else 0.0


def naive(student, teacher) -> tuple[float, float]:
    """Return the terms of the distances and of the angles."""
    s, t = student.tolist(), teacher.tolist()
    samples = range(len(s))
    means = mean_distance(s), mean_distance(t)
    distances, angles = [], []
    for i in samples:
        for j in samples:
            ratios = [
                (i != j) * max(math.dist(f[i], f[j]), 1e-6) / mean
                for f, mean in zip((s, t), means, strict=True)
            ]
            distances.append(smooth_l1(ratios[0] - ratios[1]))
            for k in samples:
                angles.append(smooth_l1(cosine(s[i], s[j], s[k]) - cosine(t[i], t[j], t[k])))
    return tuple(math.fsum(values) / len(values) for values in (distances, angles))


def varied(pair: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all((features != features[0]).any() for features in pair)


@many
@given(feature_pairs().filter(varied), st.floats(0, 50), st.floats(0, 50))
def test_is_its_definition(pair, distance_weight, angle_weight):
    distance, angle = naive(*pair)
    expected = distance_weight * distance + angle_weight * angle
    assert close(RKDLoss(distance_weight, angle_weight)(*pair), expected)


@many
@given(feature_pairs().filter(varied), st.floats(0.25, 8), st.floats(-5, 5), st.integers(0, 9))
def test_does_not_see_rotation_scale_and_shift(pair, scale, shift, seed):
    student, teacher = pair
    # Two copies of a sample have a distance of 1e-6, which is not scaled.
    assume(len({tuple(row) for row in student.tolist()}) == len(student))
    rotation = torch.linalg.qr(normal(student.shape[1], student.shape[1], seed=seed))[0]
    moved = RKDLoss()(scale * student @ rotation + shift, teacher)
    assert_close(moved, RKDLoss()(student, teacher), rtol=1e-7, atol=1e-9)


def test_sees_another_shape():
    """The test above would pass for a loss that ignores its inputs; this one would not."""
    student, teacher = normal(5, 3), normal(5, 4, seed=1)
    stretched = student * torch.tensor([1.0, 5.0, 1.0])
    value = RKDLoss()(student, teacher)
    assert value > 1
    assert not torch.isclose(RKDLoss()(stretched, teacher), value, rtol=1e-2)


def test_maps_and_tokens_are_flattened():
    student, teacher = normal(5, 3, 2, 2), normal(5, 9, 4, seed=1)
    expected = RKDLoss()(student.reshape(5, 12), teacher.reshape(5, 36))
    assert_close(RKDLoss()(student, teacher), expected, rtol=0, atol=0)


def test_three_samples_by_hand():
    """Compare a right triangle with sides 3, 4, 5 with the points 0, 1 and 2 on a line."""
    student = torch.tensor([[0.0, 0], [3, 0], [0, 4]], requires_grad=True)
    teacher = torch.tensor([[0.0], [1], [2]])
    # Means 4 and 4/3, ratios 3/4, 1, 5/4 and 3/4, 3/2, 3/4, each pair twice of nine.
    distance = 2 * (0 + 0.5**2 / 2 + 0.5**2 / 2) / 9
    # Cosines at the vertices 0, 3/5, 4/5 and 1, -1, 1, each twice of 27.
    angle = 2 * (0.5 + (1.6 - 0.5) + 0.2**2 / 2) / 27
    assert RKDLoss(1.0, 0.0)(student, teacher).item() == pytest.approx(distance, rel=1e-6)
    assert RKDLoss(0.0, 1.0)(student, teacher).item() == pytest.approx(angle, rel=1e-6)


class TestDuplicates:
    @pytest.mark.parametrize('rows', [[0, 0, 1, 2], [0, 0, 0, 0]], ids=['two', 'all'])
    def test_in_both_are_finite(self, rows):
        """A sampler may repeat samples to fill the last batch."""
        student, teacher = normal(2, 4, 3, dtype=torch.float32)[:, rows]
        student.requires_grad_()
        value = RKDLoss()(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.abs().max() < 1e3

    def test_in_the_student_are_finite(self):
        """All features are zero, like those of dead units."""
        student, teacher = torch.zeros(4, 3, requires_grad=True), normal(4, 3, dtype=torch.float32)
        value = RKDLoss()(student, teacher)
        value.backward()
        assert value > 1
        assert student.grad.abs().max() < 1e3

    def test_two_in_the_student_alone_get_a_gradient_of_usual_size(self):
        student, teacher = normal(2, 4, 3, dtype=torch.float32)
        student = student[[0, 0, 1, 2]].requires_grad_()
        RKDLoss()(student, teacher).backward()
        assert student.grad.abs().max() < 1e6


@pytest.mark.parametrize('field', ['distance_weight', 'angle_weight'])
@pytest.mark.parametrize('weight', [-1, math.inf, math.nan, None])
def test_weight_out_of_range(field, weight):
    with pytest.raises(ConfigError, match=f'^{field}={weight}: must be a non-negative number$'):
        RKDLoss(**{field: weight})
