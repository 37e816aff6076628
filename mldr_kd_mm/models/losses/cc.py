"""Correlation congruence (CC), in OFA-KD's version."""

from __future__ import annotations

from torch import Tensor

from mldr_kd_mm.models.losses.common import full_precision
from mldr_kd_mm.models.losses.embedding import EmbeddingLoss
from mldr_kd_mm.registry import MODELS


@MODELS.register_module()
class CCLoss(EmbeddingLoss):
    r"""Match the deviations from the teacher of neighbouring samples in a batch.

    Linear layers project the features of both models to a common width. With
    :math:`\Delta_i = W_s f_i^s - W_t f_i^t` the loss is

    .. math:: \overline{\textstyle\sum_d |\Delta_{i,d}| \, |\Delta_{i+1,d}|},

    averaged over the pairs of neighbours. A batch of one has no pair and gives 0.

    Source: OFA-KD's code for Correlation Congruence (arXiv 1904.01802), with weight 0.02. The
    paper, and torchdistill, compare the samples' kernel matrices of both models instead.

    Args:
        student_width: Width D_s. None: the Distiller sets it.
        teacher_width: Width D_t. None: the Distiller sets it.
        dim: Common width.

    Raises:
        ConfigError: If a width is missing or not positive.
    """

    def __init__(
        self,
        student_width: int | None = None,
        teacher_width: int | None = None,
        dim: int = 128,
    ) -> None:
        super().__init__(student_width, teacher_width, dim)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: Features (B, D_s).
            teacher: Features (B, D_t); no gradient flows into them.

        Returns:
            A scalar.

        Raises:
            ConfigError: If the features are not vectors (B, D) of equal batch size.
        """
        student, teacher = self.embed(student, teacher)
        deviation = (student - teacher).abs()
        return (deviation[:-1] * deviation[1:]).sum() / max(len(deviation) - 1, 1)
