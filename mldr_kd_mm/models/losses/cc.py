"""Correlation congruence, as OFA-KD's tables have it."""

from __future__ import annotations

from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_features, check_widths, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_positive


@MODELS.register_module()
class CCLoss(nn.Module):
    r"""Aligns how neighbouring samples of a batch deviate from the teacher.

    Linear layers bring the features of both to one width, :math:`\Delta_i = W_s f_i^s - W_t f_i^t`,
    and

    .. math:: \overline{\textstyle\sum_d |\Delta_{i,d}| \, |\Delta_{i+1,d}|},

    averaged over the neighbours of a batch. A batch of one has none: its loss is 0.

    Source: OFA-KD's code for Correlation Congruence (arXiv 1904.01802), which weighs it with 0.02.

    Args:
        student_width: D_s. The Distiller finds it when it is None.
        teacher_width: D_t. The Distiller finds it when it is None.
        dim: The common width.

    Raises:
        ConfigError: If a width is missing or not positive.
    """

    def __init__(
        self,
        student_width: int | None = None,
        teacher_width: int | None = None,
        dim: int = 128,
    ) -> None:
        super().__init__()
        check_widths(student_width, teacher_width)
        check_positive(dim=dim)
        self.embed_student = nn.Linear(student_width, dim)
        self.embed_teacher = nn.Linear(teacher_width, dim)

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the student's features with the teacher's.

        Args:
            student: Features (B, D_s).
            teacher: Features (B, D_t); no gradient flows into them.

        Returns:
            A scalar.

        Raises:
            ConfigError: If they are not vectors of the same samples.
        """
        check_features(student, teacher)
        deviation = (self.embed_student(student) - self.embed_teacher(teacher)).abs()
        return (deviation[:-1] * deviation[1:]).sum() / max(len(deviation) - 1, 1)
