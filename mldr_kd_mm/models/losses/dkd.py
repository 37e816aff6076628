"""Decoupled knowledge distillation (DKD)."""

from __future__ import annotations

import logging

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import (
    check_logits,
    class_of,
    drop_class,
    full_precision,
    kl_div,
)
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_above_zero, check_not_negative


@MODELS.register_module()
class DKDLoss(nn.Module):
    r"""Match the probability of the target class and the distribution of the others separately.

    With :math:`b = (p_{target}, 1 - p_{target})` and the distribution of the other classes
    :math:`\hat p = softmax(z_{i \ne target} / \tau)`:

    .. math:: \tau^2 \, (\alpha \, KL(b_t \,\|\, b_s) + \beta \, KL(\hat p_t \,\|\, \hat p_s)).

    With two classes the second term is 0, and the loss equals alpha times KD, which the log says.

    Source: Decoupled Knowledge Distillation (arXiv 2203.08679), equation 7.

    Args:
        alpha: Weight of the target class (TCKD); at least 0.
        beta: Weight of the other classes (NCKD); at least 0. OFA-KD's tables use 2, the classic
            setting for CIFAR is 8.
        temperature: Divides the logits of both models; above 0.

    Raises:
        ConfigError: If an argument is out of range.
    """

    compares_logits = True

    def __init__(self, alpha: float = 1.0, beta: float = 2.0, temperature: float = 1.0) -> None:
        super().__init__()
        check_not_negative(alpha=alpha, beta=beta)
        check_above_zero(temperature=temperature)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self._has_warned = False

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
        if teacher.shape[-1] == 2 and not self._has_warned:
            self._has_warned = True
            print_log(
                'DKDLoss: with 2 classes it equals alpha * KDLoss, and beta has no effect',
                'current',
                logging.WARNING,
            )
        target = class_of(target, teacher)
        target_s, others_s = _decouple(student / self.temperature, target)
        target_t, others_t = _decouple(teacher / self.temperature, target)
        values = self.alpha * kl_div(target_s, target_t) + self.beta * kl_div(others_s, others_t)
        return self.temperature**2 * values.mean(-1)


def _decouple(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of (target, all others), (..., B, 2), and of the others, (..., B, C-1)."""
    others = drop_class(logits, target)
    of_target = logits.gather(-1, target.unsqueeze(-1).expand(*logits.shape[:-1], 1))
    return torch.cat([of_target, others.logsumexp(-1, keepdim=True)], -1), others
