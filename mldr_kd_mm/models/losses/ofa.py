"""One-for-all distillation (OFA-KD)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_logits, class_of, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_above_zero


@MODELS.register_module()
class OFALoss(nn.Module):
    r"""Match the class probabilities, with more weight on the target if the teacher is confident.

    With the one-hot label :math:`y` and the models' probabilities :math:`p`:

    .. math:: -\sum_c \bigl( (p_t + y)^\epsilon - y \bigr) \log p_s,

    averaged over the batch. With :math:`\epsilon = 1` this is the cross-entropy with the teacher.
    OFA-KD applies it to the final logits and to those of each stage.

    Of a soft label, as from mixup, the largest class counts, as in the authors' code. With the
    soft label itself and :math:`\epsilon > 1` a factor of :math:`\log p_s` can be negative
    (:math:`0.5^{1.5} - 0.5`), and the loss would have no lower bound. As it is, it is at least 0.

    Source: One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation (arXiv 2310.19444), section "Adaptive target information enhancement".

    Args:
        eps: Exponent; above 0. OFA-KD uses 1 on CIFAR-100 and 1.5 for some pairs on ImageNet.

    Raises:
        ConfigError: If the exponent is out of range.
    """

    compares_logits = True

    def __init__(self, eps: float = 1.0) -> None:
        super().__init__()
        check_above_zero(eps=eps)
        self.eps = eps

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C); no gradient flows into them.
            target: Labels (B,), or soft labels (B, C), of which the largest is used.

        Returns:
            A scalar, or (K,), one value per head.

        Raises:
            ConfigError: If the shapes do not fit, or a label is out of range.
        """
        check_logits(student, teacher)
        target = F.one_hot(class_of(target, teacher), teacher.shape[1])
        weights = (teacher.softmax(-1) + target) ** self.eps - target
        return -(weights * F.log_softmax(student, -1)).sum(-1).mean(-1)
