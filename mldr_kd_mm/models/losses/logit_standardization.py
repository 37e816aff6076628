"""Logit standardisation (LS): knowledge distillation of standardised logits."""

from __future__ import annotations

from torch import Tensor

from mldr_kd_mm.models.losses.common import full_precision, standardize
from mldr_kd_mm.models.losses.kd import KDLoss
from mldr_kd_mm.registry import MODELS


@MODELS.register_module()
class LogitStandardizationLoss(KDLoss):
    r"""Match the class probabilities independently of the mean and scale of the logits.

    The logits of each sample are first standardised to mean 0 and standard deviation 1, so that
    the student need not match the range of the teacher's logits:

    .. math:: Z(z) = (z - \bar z) / (\sigma(z) + 10^{-7}), \qquad
              \tau^2 \, KL(softmax(Z(z_t) / \tau) \,\|\, softmax(Z(z_s) / \tau)).

    Source: Logit Standardization in Knowledge Distillation (arXiv 2403.01427), algorithm 1;
    :math:`\sigma` is the unbiased estimate. One difference: it is at least 0.01 here, so that the
    gradient of a head that starts at zero is bounded. Logits that vary more are unaffected.

    Args:
        temperature: Divides the standardised logits of both models; above 0.

    Raises:
        ConfigError: If the temperature is out of range.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__(temperature)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss; see :class:`KDLoss`."""
        return super().forward(standardize(student), standardize(teacher))
