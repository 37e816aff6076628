"""FitNet: regression of the teacher's intermediate features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_widths, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_sizes


@MODELS.register_module()
class FitNetLoss(nn.Module):
    r"""Predict the teacher's feature from the student's by a 1x1 convolution.

    .. math:: \overline{(W f_s - f_t)^2},

    averaged over the batch, the width and the grid. Different architectures give maps or tokens on
    different grids. Tokens, without the class token, are therefore reshaped into a map, and the
    finer map is average-pooled to the coarser grid.

    Source: FitNets: Hints for Thin Deep Nets (arXiv 1412.6550), equation 3. The common layout is
    this project's. The convolution has a bias and is the whole regressor; other implementations
    leave out the bias (OFA-KD), or add BatchNorm and ReLU (mdistiller).

    Args:
        student_width: Width C_s of the student's feature. None: the Distiller sets it.
        teacher_width: Width C_t of the teacher's feature. None: the Distiller sets it.
        student_grid: (H, W) of the student's tokens; None for a map. The Distiller sets it.
        teacher_grid: (H, W) of the teacher's tokens; None for a map. The Distiller sets it.

    Raises:
        ConfigError: If a width is missing or not positive, or a grid is not two sizes.
    """

    def __init__(
        self,
        student_width: int | None = None,
        teacher_width: int | None = None,
        student_grid: Sequence[int] | None = None,
        teacher_grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_widths(student_width, teacher_width)
        grids = dict(student_grid=student_grid, teacher_grid=teacher_grid)
        check_sizes(2, **{field: grid for field, grid in grids.items() if grid is not None})
        self.student_grid = student_grid
        self.teacher_grid = teacher_grid
        self.predict = nn.Conv2d(student_width, teacher_width, kernel_size=1)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the student's feature with the teacher's.

        Args:
            student: A map (B, C_s, H, W) or tokens (B, [1 +] H * W, C_s).
            teacher: A map (B, C_t, H, W) or tokens (B, [1 +] H * W, C_t); no gradient flows into
                it.

        Returns:
            A scalar.

        Raises:
            ConfigError: If a feature is neither a map nor tokens of its grid, or the batch sizes
                differ.
        """
        if len(student) != len(teacher):
            raise ConfigError(
                f'features: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: must '
                'have equal batch sizes'
            )
        student = _as_map(student, self.student_grid, 'student')
        teacher = _as_map(teacher, self.teacher_grid, 'teacher')
        grid = [min(sides) for sides in zip(student.shape[-2:], teacher.shape[-2:], strict=True)]
        student, teacher = (_pool(feature, grid) for feature in (student, teacher))
        return F.mse_loss(self.predict(student), teacher)


def _pool(feature: Tensor, grid: Sequence[int]) -> Tensor:
    """Average-pool a map (B, C, H, W) to a grid as ``F.adaptive_avg_pool2d`` does.

    As two products, since torch has no deterministic backward pass of that function on a GPU.
    """
    for dim, size in zip((-2, -1), grid, strict=True):
        if size != feature.shape[dim]:
            weights = _window_weights(feature.shape[dim], size, feature)
            feature = (feature.transpose(dim, -1) @ weights).transpose(dim, -1)
    return feature


def _window_weights(length: int, count: int, like: Tensor) -> Tensor:
    """Return weights (length, count) of the means over adaptive pooling's windows."""
    window = torch.arange(count, device=like.device)
    first, end = window * length // count, ((window + 1) * length + count - 1) // count
    place = torch.arange(length, device=like.device).unsqueeze(1)
    return ((place >= first) & (place < end)).to(like) / (end - first)


def _as_map(feature: Tensor, grid: Sequence[int] | None, whose: str) -> Tensor:
    """Return a map (B, C, H, W) of a map or tokens (B, [1 +] H * W, C)."""
    if feature.dim() == 4:
        return feature
    if feature.dim() != 3 or grid is None or feature.shape[1] - math.prod(grid) not in (0, 1):
        raise ConfigError(
            f'{whose}_grid={grid}: the feature has shape {tuple(feature.shape)}; must be a map '
            '(B, C, H, W), or tokens (B, H * W, C) with or without a class token'
        )
    return feature[:, -math.prod(grid) :].mT.unflatten(-1, tuple(grid))
