"""Distillation from a stronger teacher (DIST)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_logits, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_above_zero, check_not_negative

# A centred row whose norm is at most this many roundings of the row's own is a constant row.
_ROUNDINGS = 16


@MODELS.register_module()
class DISTLoss(nn.Module):
    r"""Correlate the student's class probabilities with the teacher's.

    With :math:`p = softmax(z / \tau)` of shape (B, C) and Pearson's correlation :math:`\rho`:

    .. math:: \tau^2 \, \bigl( \beta \, (1 - \overline{\rho(p_s[b,:], p_t[b,:])})
              + \gamma \, (1 - \overline{\rho(p_s[:,c], p_t[:,c])}) \bigr),

    where the first correlation is over the classes of each sample and the second over the batch for
    each class.

    The correlation of a row or column that is constant, up to rounding, counts as 0 without a
    gradient, which would be unbounded (a student whose head starts at zero). In a batch of one the
    second term is 0.

    Source: Knowledge Distillation from A Stronger Teacher (arXiv 2205.10536), equations 9 and 10.
    The factor :math:`\tau^2` and the 1e-8 in the divisor of the correlation are from the authors'
    code, which this loss equals on all other rows and columns.

    Args:
        beta: Weight of the correlation over the classes; at least 0.
        gamma: Weight of the correlation over the batch; at least 0.
        temperature: Divides the logits of both models; above 0.

    Raises:
        ConfigError: If an argument is out of range.
    """

    compares_logits = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_not_negative(beta=beta, gamma=gamma)
        check_above_zero(temperature=temperature)
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C); no gradient flows into them.

        Returns:
            A scalar, or (K,), one value per head.

        Raises:
            ConfigError: If the shapes do not fit.
        """
        check_logits(student, teacher)
        student, teacher = ((z / self.temperature).softmax(-1) for z in (student, teacher))
        loss = self.beta * (1 - _correlation(student, teacher).mean(-1))
        if len(teacher) > 1:
            loss = loss + self.gamma * (1 - _correlation(student.mT, teacher.mT).mean(-1))
        return self.temperature**2 * loss


def _correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute Pearson's correlation over the last dimension: (..., M) -> (...)."""
    of_student, of_teacher = _deviations(student), _deviations(teacher)
    norms = of_student.norm * of_teacher.norm
    correlation = (of_student.values * of_teacher.values).sum(-1) / (norms + 1e-8)
    return torch.where(of_student.vary & of_teacher.vary, correlation, 0.0)


class _Deviations(NamedTuple):
    """Deviations (..., M) from the mean, their norm (...), and whether the row varies (...)."""

    values: Tensor
    norm: Tensor
    vary: Tensor


def _deviations(rows: Tensor) -> _Deviations:
    values = rows - rows.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(values, dim=-1)
    rounding = torch.finfo(rows.dtype).eps * torch.linalg.vector_norm(rows.detach(), dim=-1)
    return _Deviations(values, norm, norm > _ROUNDINGS * rounding)
