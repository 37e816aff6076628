"""Relational knowledge distillation (RKD)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mldr_kd_mm.models.losses.common import check_features, full_precision
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import check_not_negative


@MODELS.register_module()
class RKDLoss(nn.Module):
    r"""Match the distances and angles between the features of a batch.

    With features :math:`f`, the mean distance :math:`\mu` of all pairs and the smooth L1 loss
    :math:`l`, averaged over all pairs and triples, including those that repeat a sample:

    .. math:: w_d \, l(|f_i - f_j| / \mu) + w_a \, l(\cos \angle f_i f_j f_k).

    Maps and tokens are flattened to vectors. The widths of student and teacher may differ. A batch
    of one has no pair and gives 0. The memory grows with B^2 times the size of a feature.

    Source: Relational Knowledge Distillation (arXiv 1904.05068), equations 5 to 8.

    Args:
        distance_weight: Weight of the distances; at least 0.
        angle_weight: Weight of the angles; at least 0.

    Raises:
        ConfigError: If a weight is out of range.
    """

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        check_not_negative(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: Features (B, ...), such as (B, D_s) or a map (B, C_s, H, W).
            teacher: Features (B, ...); no gradient flows into them.

        Returns:
            A scalar.

        Raises:
            ConfigError: If the batch sizes differ.
        """
        student, teacher = (f.flatten(1) if f.dim() > 2 else f for f in (student, teacher))
        check_features(student, teacher)
        student, teacher = (f.unsqueeze(0) - f.unsqueeze(1) for f in (student, teacher))
        distance = F.smooth_l1_loss(_distances(student), _distances(teacher))
        angle = F.smooth_l1_loss(_angles(student), _angles(teacher))
        return self.distance_weight * distance + self.angle_weight * angle


def _distances(differences: Tensor) -> Tensor:
    """Compute all distances, divided by their mean: (B, B, D) -> (B, B)."""
    batch = len(differences)
    # The square root has no gradient at 0, the distance of a sample from itself.
    distances = differences.square().sum(-1).clamp_min(1e-12).sqrt()
    distances = distances * (1 - torch.eye(batch, dtype=distances.dtype, device=distances.device))
    return distances / (distances.sum() / max(batch * (batch - 1), 1)).clamp_min(1e-12)


def _angles(differences: Tensor) -> Tensor:
    """Compute the cosine of the angle at each sample between any two: (B, B, D) -> (B, B, B)."""
    norms = torch.linalg.vector_norm(differences, dim=-1, keepdim=True)
    # Equal samples have no direction. Dividing by their tiny norm would give an unbounded gradient.
    directions = differences / torch.where(norms > 1e-6, norms, 1.0)
    return directions @ directions.mT
