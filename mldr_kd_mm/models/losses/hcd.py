"""Heterogeneous complementary distillation (HCD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import (
    check_features,
    check_widths,
    class_of,
    drop_class,
    full_precision,
    kl_div,
)
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_not_negative, check_positive

_MAX_COSINE = 0.5  # of two sub-logits, without a penalty


@MODELS.register_module()
class HCDLoss(nn.Module):
    r"""Learn from several corrections of the teacher's logits, made of features of both models.

    Two linear layers with a ReLU between them map the student's feature, projected to the teacher's
    width, and the teacher's feature to k vectors of logits :math:`v_j`, the sub-logits. Added to
    the teacher's logits they give :math:`z_j = z_t + v_j`. With the student's final logits
    :math:`z_s` and the label :math:`y` the loss, averaged over the batch, is

    .. math:: \frac{1}{k} \sum_j \Bigl( \mathrm{CE}(z_j, y)
        + \lambda \, KL(softmax(z_s) \,\|\, softmax(z_j)) \Bigr)
        + \overline{\max(\cos(\hat v_j, \hat v_l) - 0.5, \, 0)^2},

    where the mean in the last term, which keeps the sub-logits different, goes over the pairs
    :math:`j \ne l`, and :math:`\hat v` leaves out the label's class. A soft label, as from mixup,
    enters the cross-entropy as it is; its largest class is left out of the cosine.

    Source: **third-hand and of low trust.** HCD (arXiv 2511.10942) as retold by a public study
    note, whose results of earlier methods contradict OFA-KD's table. The paper and its code were
    not available. The note gives the direction of the KL divergence; that gradients reach both of
    its sides is this project's reading. So is the pooling of maps and tokens to their mean before a
    linear projection, where the paper's abstract has a convolution and adaptive pooling.

    Args:
        sub_logits: Number k of sub-logits.
        kl_weight: Weight :math:`\lambda` of the KL divergence; at least 0.
        num_classes: Number of classes C. None: the Distiller sets it.
        student_width: Width D_s. None: the Distiller sets it.
        teacher_width: Width D_t. None: the Distiller sets it.

    Raises:
        ConfigError: If an argument is out of range, or a width or ``num_classes`` is missing.
    """

    def __init__(
        self,
        sub_logits: int = 4,
        kl_weight: float = 6.0,
        num_classes: int | None = None,
        student_width: int | None = None,
        teacher_width: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(sub_logits=sub_logits, num_classes=num_classes)
        check_not_negative(kl_weight=kl_weight)
        check_widths(student_width, teacher_width)
        self.kl_weight = kl_weight
        self.num_classes = num_classes
        self.project = nn.Linear(student_width, teacher_width)
        self.map = nn.Sequential(
            nn.Linear(2 * teacher_width, teacher_width),
            nn.ReLU(),
            nn.Linear(teacher_width, sub_logits * num_classes),
            nn.Unflatten(-1, (sub_logits, num_classes)),
        )

    @full_precision
    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        target: Tensor,
        student_logits: Tensor,
        teacher_logits: Tensor,
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: A map (B, D_s, H, W), tokens (B, N, D_s) or features (B, D_s).
            teacher: Features (B, D_t); no gradient flows into them.
            target: Labels (B,), or soft labels (B, C).
            student_logits: The student's final logits (B, C).
            teacher_logits: The teacher's logits (B, C); no gradient flows into them.

        Returns:
            A scalar.

        Raises:
            ConfigError: If the shapes do not fit, or a label is out of range.
        """
        student = _pool(student)
        check_features(student, teacher)
        self._check_logits(len(student), student=student_logits, teacher=teacher_logits)
        student_logits = student_logits.to(student.dtype)
        teacher_logits = teacher_logits.detach().to(student.dtype)
        classes = class_of(target, teacher_logits)
        sub_logits = self.map(torch.cat([self.project(student), teacher], -1)).transpose(0, 1)
        fused = teacher_logits + sub_logits
        divergence = kl_div(fused, student_logits).mean()
        similarity = _similarity(drop_class(sub_logits, classes))
        return _cross_entropy(fused, target) + self.kl_weight * divergence + similarity

    def _check_logits(self, batch: int, **logits: Tensor) -> None:
        for whose, tensor in logits.items():
            if tensor.shape != (batch, self.num_classes):
                raise ConfigError(
                    f'{whose}_logits: have shape {tuple(tensor.shape)}; must be ({batch}, '
                    f'{self.num_classes}) for num_classes={self.num_classes}'
                )


def _pool(feature: Tensor) -> Tensor:
    """Average a map (B, D, H, W) or tokens (B, N, D) over the positions: (B, D)."""
    if feature.dim() == 4:
        return feature.mean((-2, -1))
    return feature.mean(1) if feature.dim() == 3 else feature


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean cross-entropy of logits (k, B, C) with labels (B,) or (B, C)."""
    target = target.to(logits.dtype) if target.dim() == 2 else target
    return F.cross_entropy(
        logits.flatten(0, 1), target.expand(len(logits), *target.shape).flatten(0, 1)
    )


def _similarity(vectors: Tensor) -> Tensor:
    """Compute the penalty of similar pairs among k vectors of each sample: (k, B, M) -> ()."""
    count, batch, _ = vectors.shape
    directions = F.normalize(vectors, dim=-1).transpose(0, 1)
    excess = F.relu(directions @ directions.mT - _MAX_COSINE).square()
    return excess.triu(diagonal=1).sum() / max(batch * count * (count - 1) / 2, 1)
