"""Linear embeddings of a common width, which several losses compare."""

from __future__ import annotations

from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_features, check_widths
from mldr_kd_mm.utils.errors import check_positive


class EmbeddingLoss(nn.Module):
    """Base of losses that compare features after a linear layer of each model's own.

    Args:
        student_width: Width D_s of the student's features.
        teacher_width: Width D_t of the teacher's features.
        dim: Width of the embeddings.

    Raises:
        ConfigError: If a width is missing or not positive.
    """

    def __init__(self, student_width: int | None, teacher_width: int | None, dim: int) -> None:
        super().__init__()
        check_positive(dim=dim)
        check_widths(student_width, teacher_width)
        self.embed_student = nn.Linear(student_width, dim)
        self.embed_teacher = nn.Linear(teacher_width, dim)

    def embed(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, dim) of features (B, D_s) and (B, D_t).

        Raises:
            ConfigError: If the features are not vectors (B, D) of equal batch size.
        """
        check_features(student, teacher)
        return self.embed_student(student), self.embed_teacher(teacher)
