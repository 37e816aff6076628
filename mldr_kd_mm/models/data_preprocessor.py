"""mmpretrain's data preprocessor, with mixup and cutmix that can be reproduced."""

from __future__ import annotations

import torch
from mmpretrain.models import ClsDataPreprocessor as MMPretrainClsDataPreprocessor
from torch import Tensor, nn

from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.view import get_views, hash_views
from mldr_kd_mm.utils.random import preserve_global_rng, seed_global_rng


@MODELS.register_module()
class ClsDataPreprocessor(MMPretrainClsDataPreprocessor):
    """mmpretrain's data preprocessor of the same name; how it mixes a batch is up to its views.

    Where a :class:`~mldr_kd_mm.datasets.ViewSampler` drew the batch, mixup and cutmix are a
    function of (seed, epoch, indices of the batch) and leave the global random state as it was.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """As mmpretrain has it: ``inputs`` (B, 3, H, W) and ``data_samples``."""
        views = get_views(data.get('data_samples'))
        if not training or self.batch_augments is None or views is None:
            return super().forward(data, training)
        with preserve_global_rng():
            seed_global_rng(views[0].seed, views[0].epoch, hash_views(views), 1)
            return super().forward(data, training)


class Renormalize(nn.Module):
    """Undoes one data preprocessor's normalisation and applies another's.

    Both are affine in each channel, so that mixup and cutmix, done in between, stay what they are.

    Args:
        source: The data preprocessor that the images have been through.
        target: The one whose normalisation is wanted.
    """

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        super().__init__()
        self.flip = getattr(source, 'to_rgb', False) != getattr(target, 'to_rgb', False)
        source_mean, source_std = statistics(source)
        target_mean, target_std = statistics(target)
        if self.flip:
            source_mean, source_std = source_mean.flip(0), source_std.flip(0)
        scale, shift = source_std / target_std, (source_mean - target_mean) / target_std
        self.identity = not self.flip and bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer('scale', scale, persistent=False)
        self.register_buffer('shift', shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        if self.identity:
            return images
        return (images.flip(1) if self.flip else images) * self.scale + self.shift


def statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a data preprocessor, (3, 1, 1), on pixels of 0 to 255."""
    mean = getattr(preprocessor, 'mean', torch.zeros(3, 1, 1))
    std = getattr(preprocessor, 'std', torch.ones(3, 1, 1))
    return mean.float(), std.float()
