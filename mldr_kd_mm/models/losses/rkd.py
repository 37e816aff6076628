"""Relational knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_features, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_not_negative


@MODELS.register_module()
class RKDLoss(nn.Module):
    r"""Aligns the distances and the angles among the features of a batch.

    With features :math:`f`, the mean distance :math:`\mu` of all pairs and the smooth L1 loss
    :math:`l`, averaged over pairs and triples, those with equal samples among them:

    .. math:: w_d \, l(|f_i - f_j| / \mu) + w_a \, l(\cos \angle f_i f_j f_k).

    The widths of student and teacher may differ. A batch of one has no pair: its loss is 0.

    Source: Relational Knowledge Distillation (arXiv 1904.05068), equations 5 to 8.

    Args:
        distance_weight: Weight of the distances; at least 0.
        angle_weight: Weight of the angles; at least 0.

    Raises:
        ConfigError: For a weight out of range.
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        check_not_negative(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

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
        student, teacher = (f.unsqueeze(0) - f.unsqueeze(1) for f in (student, teacher))
        distance = F.smooth_l1_loss(_distances(student), _distances(teacher))
        angle = F.smooth_l1_loss(_angles(student), _angles(teacher))
        return self.distance_weight * distance + self.angle_weight * angle


def _distances(differences: Tensor) -> Tensor:
    """All distances, divided by their mean: (B, B, D) -> (B, B)."""
    batch = len(differences)
    # The root has no gradient at 0, where a sample meets itself.
    distances = differences.square().sum(-1).clamp_min(1e-12).sqrt()
    distances = distances * (1 - torch.eye(batch, dtype=distances.dtype, device=distances.device))
    return distances / (distances.sum() / max(batch * (batch - 1), 1)).clamp_min(1e-12)


def _angles(differences: Tensor) -> Tensor:
    """Cosines of the angles that each sample sees between any two: (B, B, D) -> (B, B, B)."""
    norms = torch.linalg.vector_norm(differences, dim=-1, keepdim=True)
    # Two equal samples have no direction; divided by next to nothing its gradient would have no
    # bound.
    directions = differences / torch.where(norms > 1e-6, norms, 1.0)
    return directions @ directions.mT
