"""Knowledge distillation (KD) by softened probabilities."""

from __future__ import annotations

from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_logits, full_precision, kl_div
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_above_zero


@MODELS.register_module()
class KDLoss(nn.Module):
    r"""Match the class probabilities.

    With logits :math:`z` divided by the temperature :math:`\tau`:

    .. math:: \tau^2 \, KL(softmax(z_t / \tau) \,\|\, softmax(z_s / \tau)),

    summed over the classes, averaged over the batch.

    Source: Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2.

    Args:
        temperature: Divides the logits of both models; above 0. OFA-KD's tables use 1, the classic
            setting for CIFAR is 4.

    Raises:
        ConfigError: If the temperature is out of range.
    """

    compares_logits = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_above_zero(temperature=temperature)
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
        values = kl_div(student / self.temperature, teacher / self.temperature)
        return self.temperature**2 * values.mean(-1)


@MODELS.register_module()
class HardKDLoss(nn.Module):
    r"""Hard distillation: cross-entropy with the class that the teacher predicts.

    .. math:: -\log softmax(z_s)_{\hat y}, \quad \hat y = \arg\max_c z_{t,c},

    averaged over the batch, without label smoothing.

    Source: Training data-efficient image transformers & distillation through attention (arXiv
    2012.12877), section 4, hard-label distillation.
    """

    compares_logits = True

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: Logits (B, C), or (K, B, C) of K heads.
            teacher: Logits (B, C).

        Returns:
            A scalar, or (K,), one value per head.

        Raises:
            ConfigError: If the shapes do not fit.
        """
        check_logits(student, teacher)
        decision = teacher.argmax(-1, keepdim=True).expand(*student.shape[:-1], 1)
        return -student.log_softmax(-1).gather(-1, decision).mean((-2, -1))
