"""Knowledge distillation of standardised logits."""

from __future__ import annotations

from torch import Tensor

from mldr_kd_mm.models.losses.common import full_precision, standardize
from mldr_kd_mm.models.losses.kd import KDLoss
from mldr_kd_mm.registry import MODELS


@MODELS.register_module()
class LogitStandardizationLoss(KDLoss):
    r"""Aligns the class probabilities whatever the mean and the scale of a sample's logits.

    The logits of each sample are first brought to mean 0 and standard deviation 1, so that a
    student need not reach the range of the teacher's:

    .. math:: Z(z) = (z - \bar z) / (\sigma(z) + 10^{-7}), \qquad
              \tau^2 \, KL(softmax(Z(z_t) / \tau) \,\|\, softmax(Z(z_s) / \tau)).

    Source: Logit Standardization in Knowledge Distillation (arXiv 2403.01427), algorithm 1;
    :math:`\sigma` is the unbiased estimate.

    Args:
        temperature: Divides the standardised logits of both; above 0.

    Raises:
        ConfigError: For a temperature out of range.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__(temperature)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the student's logits with the teacher's; see :class:`KDLoss`."""
        return super().forward(standardize(student), standardize(teacher))
