"""FitNet's loss against its definition, for maps and tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import close, many, normal
from torch.profiler import profile
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import FitNetLoss, fitnet


def naive(loss: FitNetLoss, student: torch.Tensor, teacher: torch.Tensor) -> float:
    """Compute the loss for maps (B, C, H, W) of one grid, one position at a time."""
    weight, bias = loss.predict.weight.flatten(1).tolist(), loss.predict.bias.tolist()
    squares = []
    places = (f.permute(0, 2, 3, 1).flatten(0, 2).tolist() for f in (student, teacher))
    for s, t in zip(*places, strict=True):
        for row, offset, hint in zip(weight, bias, t, strict=True):
            predicted = sum(w * x for w, x in zip(row, s, strict=True)) + offset
            squares.append((predicted - hint) ** 2)
    return sum(squares) / len(squares)


def tokens(feature: torch.Tensor, class_token: float | None = None) -> torch.Tensor:
    """Convert a map to tokens: (B, C, H, W) -> (B, [1 +] H * W, C)."""
    feature = feature.flatten(2).mT
    if class_token is None:
        return feature
    return torch.cat([torch.full_like(feature[:, :1], class_token), feature], 1)


sizes = st.integers(1, 3)


@many
@given(sizes, sizes, sizes, sizes, sizes, st.integers(0, 99))
def test_is_its_definition(batch, student_width, teacher_width, height, width, seed):
    loss = FitNetLoss(student_width, teacher_width).double()
    student = normal(batch, student_width, height, width, seed=seed)
    teacher = normal(batch, teacher_width, height, width, seed=seed + 100)
    assert close(loss(student, teacher), naive(loss, student, teacher))


@pytest.mark.parametrize('class_token', [None, 99.0], ids=['plain', 'class token'])
@pytest.mark.parametrize('whose', ['student', 'teacher', 'both'])
def test_tokens_are_the_map_they_stand_for(whose, class_token):
    """Tokens are in row-major order; the class token is left out."""
    loss = FitNetLoss(3, 4, student_grid=(2, 5), teacher_grid=[2, 5]).double()
    student, teacher = normal(2, 3, 2, 5), normal(2, 4, 2, 5, seed=1)
    expected = loss(student, teacher)
    if whose != 'teacher':
        student = tokens(student, class_token)
    if whose != 'student':
        teacher = tokens(teacher, class_token)
    assert_close(loss(student, teacher), expected, rtol=1e-12, atol=0)


def test_the_class_token_gets_no_gradient():
    loss = FitNetLoss(3, 4, student_grid=(2, 2)).double()
    student = normal(2, 5, 3).requires_grad_()
    loss(student, normal(2, 4, 2, 2)).backward()
    assert not student.grad[:, 0].any()
    assert student.grad[:, 1:].all()


class TestGrids:
    def test_a_finer_student_is_averaged(self):
        loss = FitNetLoss(3, 4).double()
        student, teacher = normal(2, 3, 4, 6), normal(2, 4, 2, 2, seed=1)
        coarse = student.reshape(2, 3, 2, 2, 2, 3).mean((3, 5))
        assert close(loss(student, teacher), naive(loss, coarse, teacher))

    def test_a_finer_teacher_is_averaged(self):
        loss = FitNetLoss(3, 4, student_grid=(2, 2)).double()
        student, teacher = normal(2, 3, 2, 2), normal(2, 4, 8, 8, seed=1)
        coarse = teacher.reshape(2, 4, 2, 4, 2, 4).mean((3, 5))
        assert close(loss(tokens(student, 5.0), teacher), naive(loss, student, coarse))

    def test_each_side_for_itself(self):
        loss = FitNetLoss(3, 4).double()
        student, teacher = normal(2, 3, 4, 2), normal(2, 4, 2, 6, seed=1)
        coarse_student = student.reshape(2, 3, 2, 2, 2).mean(3)
        coarse_teacher = teacher.reshape(2, 4, 2, 2, 3).mean(4)
        assert close(loss(student, teacher), naive(loss, coarse_student, coarse_teacher))

    def test_that_do_not_divide(self):
        """14 x 14 tokens and a 4 x 4 map, as of a ViT at 224 px and a ResNet at 128 px."""
        loss = FitNetLoss(3, 4, student_grid=(14, 14)).double()
        student, teacher = normal(2, 196, 3).requires_grad_(), normal(2, 4, 4, 4)
        loss(student, teacher).backward()
        assert (student.grad != 0).all()

    @many
    @given(sizes, sizes, st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
    def test_pooling_is_torchs(self, batch, width, height, length, seed):
        feature = normal(batch, width, height, length, seed=seed).requires_grad_()
        for grid in [(1, 1), ((height + 1) // 2, length), (height, (length + 2) // 3)]:
            gradients = []
            for pool in (fitnet._pool, F.adaptive_avg_pool2d):
                pooled = pool(feature, grid)
                (gradient,) = torch.autograd.grad(pooled.square().sum(), feature)
                gradients += [pooled, gradient]
            assert_close(gradients[:2], gradients[2:], rtol=1e-12, atol=1e-14)

    def test_its_backward_pass_is_deterministic_on_a_gpu(self):
        """The backward pass of adaptive pooling raises there under deterministic=True."""
        student, teacher = normal(2, 3, 4, 4).requires_grad_(), normal(2, 4, 2, 2)
        with profile() as record:
            FitNetLoss(3, 4).double()(student, teacher).backward()
        assert not [event.key for event in record.key_averages() if 'adaptive' in event.key]


class TestErrors:
    @pytest.mark.parametrize('field', ['student_width', 'teacher_width'])
    @pytest.mark.parametrize('width', [None, 0, 2.0])
    def test_width(self, field, width):
        with pytest.raises(ConfigError, match=f'^{field}={width}: must be the width of the feat'):
            FitNetLoss(**dict(student_width=4, teacher_width=6) | {field: width})

    @pytest.mark.parametrize('field', ['student_grid', 'teacher_grid'])
    @pytest.mark.parametrize('grid', [4, 'ab', (4,), (0, 4), (4, 4.0)])
    def test_grid(self, field, grid):
        with pytest.raises(ConfigError) as caught:
            FitNetLoss(4, 6, **{field: grid})
        assert str(caught.value) == f'{field}={grid!r}: must be 2 positive integers'

    @pytest.mark.parametrize('whose', ['student', 'teacher'])
    @pytest.mark.parametrize(
        ('grid', 'shape'),
        [
            (None, (2, 4, 3)),
            ((2, 2), (2, 3, 3)),
            ((2, 2), (2, 6, 3)),
            ((2, 2), (2, 3)),
            (None, (2, 3)),
            ((2, 2), (2, 3, 1, 2, 2)),
        ],
    )
    def test_neither_a_map_nor_tokens_of_the_grid(self, whose, grid, shape):
        loss = FitNetLoss(3, 3, **{f'{whose}_grid': grid})
        features = dict(student=torch.zeros(2, 3, 2, 2), teacher=torch.zeros(2, 3, 2, 2))
        with pytest.raises(ConfigError) as caught:
            loss(**features | {whose: torch.zeros(shape)})
        message = str(caught.value)
        assert message.startswith(f'{whose}_grid={grid}: the feature has shape {shape}; must')
        assert '\n' not in message
