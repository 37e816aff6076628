"""InfoNCE between the features of student and teacher."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import full_precision
from mldr_kd_mm.models.losses.embedding import EmbeddingLoss
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_above_zero

_MAX_SCALE = 100.0


@MODELS.register_module()
class InfoNCELoss(EmbeddingLoss):
    r"""Find each sample's teacher feature among those of the batch by the student's feature.

    Linear layers and L2 normalisation give embeddings :math:`v_s, v_t`. With a learned temperature
    :math:`\tau` the loss, averaged over the samples i of the batch, is

    .. math::
        -\log \frac{\exp(v_{s,i}^\top v_{t,i} / \tau)}{\sum_j \exp(v_{s,i}^\top v_{t,j} / \tau)}.

    Each process contrasts the samples of its own batch. A batch of one gives 0.

    Source: FBT (arXiv 2410.12342), which adds this term to OFA's, without its fusion network. It
    follows a secondary source, because neither the paper nor its code was available: the width of
    the embeddings, the direction (from the student to the teacher) and the weight are this
    project's choice.

    Args:
        temperature: Initial temperature; above 0. In training it stays at 0.01 or above.
        dim: Width of the embeddings.
        student_width: Width D_s. None: the Distiller sets it.
        teacher_width: Width D_t. None: the Distiller sets it.

    Raises:
        ConfigError: If an argument is out of range, or a width is missing.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        dim: int = 128,
        student_width: int | None = None,
        teacher_width: int | None = None,
    ) -> None:
        super().__init__(student_width, teacher_width, dim)
        check_above_zero(temperature=temperature)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

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
        student, teacher = (F.normalize(v, dim=-1) for v in self.embed(student, teacher))
        similarities = self.log_scale.exp().clamp_max(_MAX_SCALE) * student @ teacher.T
        return -F.log_softmax(similarities, -1).diagonal().mean()
