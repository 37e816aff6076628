"""Decoupled Finegrained Relation Alignment, the loss of MLDR-KD."""

from __future__ import annotations

import math
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.registry import MODELS


@MODELS.register_module()
class DFRALoss(nn.Module):
    r"""Aligns class-wise and sample-wise relations of logits beside the probabilities.

    With logits :math:`z` of shape (B, C), both divided by the temperature, and
    :math:`\kappa = C^{-1/2}`:

    - class relation: :math:`R = \kappa z_b z_b^\top` for each sample, C x C;
    - sample relation: :math:`R = \kappa z_c z_c^\top` for each class, B x B, the same
      :math:`\kappa`;
    - each column of a relation is made a distribution by a softmax over its rows, and compared by
      KL(teacher || student), averaged over all columns of the batch;
    - probability: KL(teacher || student) of the class distributions, averaged over the batch.

    The loss is class relation + sample relation + alpha * probability. There is no factor of
    temperature squared, and logits are not centred.

    Source: MLDR-KD (arXiv 2502.06189), section "Decoupled Finegrained Relation Alignment", and the
    authors' release.

    Args:
        temperature: Divides the logits of both; above 0.
        alpha: Weight of the probability term; at least 0.

    Raises:
        ConfigError: For a temperature or an alpha out of range.
    """

    def __init__(self, temperature: float = 1.0, alpha: float = 2.0) -> None:
        super().__init__()
        if not isinstance(temperature, Real) or not 0 < temperature < math.inf:
            raise ConfigError(f'temperature={temperature!r}: must be a number above 0')
        if not isinstance(alpha, Real) or not 0 <= alpha < math.inf:
            raise ConfigError(f'alpha={alpha!r}: must be a number of 0 or more')
        self.temperature = temperature
        self.alpha = alpha

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the student's logits with the teacher's.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C); no gradient flows into them.

        Returns:
            A scalar, or (K,), one value a head.

        Raises:
            ConfigError: If the shapes do not fit.
        """
        terms = self.terms(student, teacher)
        return (
            terms['class_relation'] + terms['sample_relation'] + self.alpha * terms['probability']
        )

    def terms(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The three terms of the loss, not weighted.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C).

        Returns:
            ``class_relation``, ``sample_relation`` and ``probability``, each a scalar or (K,).
        """
        if student.dim() not in (2, 3) or student.shape[-2:] != teacher.shape:
            raise ConfigError(
                f'logits: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: '
                'must be (B, C) or (K, B, C) for the student and (B, C) for the teacher'
            )
        # Relations are products of logits: half precision would overflow at logits of 256.
        with torch.autocast(student.device.type, enabled=False):
            student = _at_least_float32(student) / self.temperature
            teacher = _at_least_float32(teacher.detach()) / self.temperature
            scale = student.shape[-1] ** -0.5
            return {
                'class_relation': _relation_kl(student, teacher, scale),
                'sample_relation': _relation_kl(student.mT, teacher.mT, scale),
                'probability': _kl(student, teacher).mean(-1),
            }


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _relation_kl(student: Tensor, teacher: Tensor, scale: float) -> Tensor:
    """Mean KL of the relations among each row's entries: (..., N, M) and (N, M) -> (...)."""
    # A relation is symmetric, so that its rows are its columns.
    return _kl(_relation(student, scale), _relation(teacher, scale)).mean((-1, -2))


def _relation(rows: Tensor, scale: float) -> Tensor:
    """(..., M) -> (..., M, M)."""
    return scale * rows.unsqueeze(-1) * rows.unsqueeze(-2)


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax over the last dimension: (..., M) -> (...)."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
