"""Redundancy suppression distillation (RSD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_features, check_widths, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_not_negative, check_switch


@MODELS.register_module()
class RSDLoss(nn.Module):
    r"""Lets each dimension of the student's feature follow one of the teacher's, and no other.

    A decoupler, which is of no use after training, brings the student's feature to the teacher's
    width: linear to twice its own width, BatchNorm, GELU, linear, no biases. Both are standardised
    over the batch (biased deviation, plus 1e-5), and of their correlation
    :math:`P = f_t^\top f_s / B`:

    .. math:: \sum_i (P_{ii} - 1)^2 + \kappa \sum_{i \ne j} P_{ij}^2.

    A batch of one cannot be standardised: its loss is 0 (and the decoupler's BatchNorm refuses it).

    Source: the authors' release (github.com/spacewanderx/RSD, ICCV 2025), which weighs it with 0.1.

    Args:
        kappa: Weight of what is off the diagonal; at least 0.
        decoupler: Whether to have one; without it the widths must agree.
        student_width: D_s. The Distiller finds it when it is None.
        teacher_width: D_t. The Distiller finds it when it is None.

    Raises:
        ConfigError: For a weight out of range, a width that is missing or not positive, or widths
            that differ without a decoupler.
    """

    def __init__(
        self,
        kappa: float = 0.01,
        decoupler: bool = True,
        student_width: int | None = None,
        teacher_width: int | None = None,
    ) -> None:
        super().__init__()
        check_not_negative(kappa=kappa)
        check_switch(decoupler=decoupler)
        check_widths(student_width, teacher_width)
        if not decoupler and student_width != teacher_width:
            raise ConfigError(
                f'decoupler=False: the student has width {student_width}, the teacher '
                f'{teacher_width}: must be True where they differ'
            )
        self.kappa = kappa
        self.decoupler = nn.Identity()
        if decoupler:
            self.decoupler = nn.Sequential(
                nn.Linear(student_width, 2 * student_width, bias=False),
                nn.BatchNorm1d(2 * student_width),
                nn.GELU(),
                nn.Linear(2 * student_width, teacher_width, bias=False),
            )

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the student's features with the teacher's.

        Args:
            student: Features (B, D_s).
            teacher: Features (B, D_t); no gradient flows into them.

        Returns:
            A scalar.

        Raises:
            ConfigError: If they are not vectors of the same samples, or their widths differ.
        """
        check_features(student, teacher)
        student = self.decoupler(student)
        if student.shape != teacher.shape:
            raise ConfigError(
                f'features: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: '
                'must be of the same width'
            )
        if len(student) == 1:
            return 0 * student.sum()
        correlation = _standardize(teacher).T @ _standardize(student) / len(student)
        diagonal = correlation.diagonal()
        others = correlation.square().sum() - diagonal.square().sum()
        return (diagonal - 1).square().sum() + self.kappa * others


def _standardize(features: Tensor) -> Tensor:
    """Each dimension over the batch: (B, D) -> (B, D)."""
    centred = features - features.mean(0)
    # The root has no gradient at 0, which a dead unit is.
    deviation = torch.sqrt(centred.square().mean(0) + torch.finfo(features.dtype).tiny)
    return centred / (deviation + 1e-5)
