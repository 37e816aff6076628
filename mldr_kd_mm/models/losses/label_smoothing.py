"""Label-smoothed cross-entropy, a classifier's own loss."""

from __future__ import annotations

import torch.nn.functional as F
from mmpretrain.models import LabelSmoothLoss
from torch import Tensor

from mldr_kd_mm.registry import MODELS


# The second name replaces mmpretrain's loss in runs with our default scope.
@MODELS.register_module(name=['SmoothedCrossEntropyLoss', 'LabelSmoothLoss'])
class SmoothedCrossEntropyLoss(LabelSmoothLoss):
    """mmpretrain's LabelSmoothLoss, for which the host does not wait on a GPU.

    mmpretrain's reads the largest label in each step to check it. A Distiller checks the labels
    before they are on the GPU. The value is the same.
    """

    def generate_one_hot_like_label(self, label: Tensor) -> Tensor:
        """Convert labels (B,) or (B, 1) to (B, num_classes); leave scores (B, C) as they are."""
        if label.dim() == 1 or label.shape[1:] == (1,):
            label = F.one_hot(label.flatten().long(), self.num_classes)
        return label.float()
