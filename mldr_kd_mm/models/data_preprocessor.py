"""Preprocess batches: reproducible mixup and CutMix, and a change of normalisation."""

from __future__ import annotations

import torch
from mmpretrain.models import ClsDataPreprocessor
from torch import Tensor, nn

from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.view import get_views, hash_views
from mldr_kd_mm.utils.random import preserve_global_rng, seed_global_rng


# The second name replaces mmpretrain's preprocessor in runs with our default scope.
@MODELS.register_module(name=['ViewDataPreprocessor', 'ClsDataPreprocessor'])
class ViewDataPreprocessor(ClsDataPreprocessor):
    """mmpretrain's ClsDataPreprocessor with reproducible mixup and CutMix.

    If a :class:`~mldr_kd_mm.datasets.ViewSampler` drew the batch, mixup and CutMix are a function
    of (seed, epoch, indices of the batch) and leave the global random state unchanged. Otherwise
    it behaves like mmpretrain's. Under the default scope ``mldr_kd_mm`` it is also registered as
    ``ClsDataPreprocessor``.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Return ``inputs`` (B, 3, H, W) and ``data_samples``, as mmpretrain's does."""
        views = get_views(data.get('data_samples'))
        if not training or self.batch_augments is None or views is None:
            return super().forward(data, training)
        with preserve_global_rng():
            seed_global_rng(views[0].seed, views[0].epoch, hash_views(views), 1)
            return super().forward(data, training)


class Renormalize(nn.Module):
    """Undo one data preprocessor's normalisation and apply another's.

    Both are affine in each channel, so mixup and CutMix in between keep their meaning.

    Args:
        source: The data preprocessor that the images have gone through.
        target: The data preprocessor whose normalisation is wanted.
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
        """Convert images (B, 3, H, W)."""
        if self.identity:
            return images
        return (images.flip(1) if self.flip else images) * self.scale + self.shift


def statistics(preprocessor: nn.Module) -> tuple[Tensor, Tensor]:
    """Return a preprocessor's mean and standard deviation (3, 1, 1), for pixels of 0 to 255."""
    mean = getattr(preprocessor, 'mean', torch.zeros(3, 1, 1))
    std = getattr(preprocessor, 'std', torch.ones(3, 1, 1))
    return mean.float(), std.float()
