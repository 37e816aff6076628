"""The loss of one-for-all distillation (OFA-KD)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_logits, full_precision, probability_of
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_above_zero


@MODELS.register_module()
class OFALoss(nn.Module):
    r"""Aligns the class probabilities, the target's the more the surer the teacher is of it.

    With the label as a distribution :math:`y` and probabilities :math:`p`:

    .. math:: -\sum_c \bigl( (p_t + y)^\epsilon - y \bigr) \log p_s,

    averaged over the batch. With :math:`\epsilon = 1` it is the cross-entropy with the teacher.
    OFA-KD reads the final logits and those of each stage.

    Source: One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation (arXiv 2310.19444), section "Adaptive target information enhancement".

    Args:
        eps: The exponent; above 0. 1 for CIFAR-100, 1.5 for some pairs on ImageNet.

    Raises:
        ConfigError: For an exponent out of range.
    """

    compares_logits = True

    def __init__(self, eps: float = 1.0) -> None:
        super().__init__()
        check_above_zero(eps=eps)
        self.eps = eps

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compare the student's logits with the teacher's.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C); no gradient flows into them.
            target: Labels (B,), or soft labels (B, C).

        Returns:
            A scalar, or (K,), one value a head.

        Raises:
            ConfigError: If the shapes do not fit or a label is outside the classes.
        """
        check_logits(student, teacher)
        target = probability_of(target, teacher)
        weights = (teacher.softmax(-1) + target) ** self.eps - target
        return -(weights * F.log_softmax(student, -1)).sum(-1).mean(-1)
