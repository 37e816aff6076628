"""Redundancy suppression distillation (RSD)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_features, check_widths, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_not_negative, check_switch


@MODELS.register_module()
class RSDLoss(nn.Module):
    r"""Correlate each dimension of the student's feature with one of the teacher's and no other.

    A decoupler, used in training only, projects the student's feature to the teacher's width:
    linear to twice its own width, BatchNorm, GELU, linear, without biases. Both features are
    standardised over the batch (biased deviation, plus 1e-5). With their correlation
    :math:`P = f_t^\top f_s / B` the loss is

    .. math:: \sum_i (P_{ii} - 1)^2 + \kappa \sum_{i \ne j} P_{ij}^2.

    Logits can take the place of features, for one or several heads at once: the method
    ``rsd_logits``, which needs no decoupler. A secondary source reports that RSD's paper
    does so with all logits that OFA compares; the paper was not available.

    A batch of one cannot be standardised and gives 0 (and the decoupler's BatchNorm refuses it in
    training).

    Source: the authors' release (github.com/spacewanderx/RSD, ICCV 2025), with weight 0.1. One
    difference: the decoupler's linear layers have torch's initialisation, while the release draws
    them from a truncated normal distribution of deviation 0.02. The scale of these
    layers cancels in the loss, so that only their effective learning rate differs.

    Args:
        kappa: Weight of the off-diagonal correlations; at least 0.
        decoupler: Whether to use the decoupler. Without it the widths must be equal.
        student_width: Width D_s. None: the Distiller sets it.
        teacher_width: Width D_t. None: the Distiller sets it.

    Raises:
        ConfigError: If an argument is out of range, a width is missing, or the widths differ
            without a decoupler.
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
                f'decoupler=False: must be True, as the student has width {student_width} and the '
                f'teacher {teacher_width}'
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
        """Compute the loss.

        Args:
            student: Features (B, D_s), or without a decoupler (K, B, D_s) of K heads.
            teacher: Features (B, D_t); no gradient flows into them.

        Returns:
            A scalar, or (K,), one value per head.

        Raises:
            ConfigError: If the features are not vectors of equal batch size, or their widths
                differ.
        """
        takes_heads = isinstance(self.decoupler, nn.Identity)
        check_features(student[0] if takes_heads and student.dim() == 3 else student, teacher)
        student = self.decoupler(student)
        if student.shape[-1] != teacher.shape[-1]:
            raise ConfigError(
                f'features: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: '
                'must have equal widths'
            )
        if len(teacher) == 1:
            return 0 * student.sum((-2, -1))
        correlation = _standardize(teacher).T @ _standardize(student) / len(teacher)
        diagonal = correlation.diagonal(dim1=-2, dim2=-1)
        others = correlation.square().sum((-2, -1)) - diagonal.square().sum(-1)
        return (diagonal - 1).square().sum(-1) + self.kappa * others


def _standardize(features: Tensor) -> Tensor:
    """Standardise each dimension over the batch: (..., B, D) -> (..., B, D)."""
    centred = features - features.mean(-2, keepdim=True)
    # The square root has no gradient at 0, the deviation of a dead unit.
    variance = centred.square().mean(-2, keepdim=True)
    deviation = torch.sqrt(variance + torch.finfo(features.dtype).tiny)
    return centred / (deviation + 1e-5)
