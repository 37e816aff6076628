"""mmpretrain's data preprocessor, with mixup and cutmix that can be reproduced."""

from __future__ import annotations

from mmpretrain.models import ClsDataPreprocessor as MMPretrainClsDataPreprocessor

from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.views import digest, global_rng_kept, seed_global_rng, views_of


@MODELS.register_module()
class ClsDataPreprocessor(MMPretrainClsDataPreprocessor):
    """mmpretrain's data preprocessor of the same name; how it mixes a batch is up to its views.

    Where a :class:`~mldr_kd_mm.datasets.ViewSampler` drew the batch, mixup and cutmix are a
    function of (seed, epoch, indices of the batch) and leave the global random state as it was.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """As mmpretrain has it: ``inputs`` (B, 3, H, W) and ``data_samples``."""
        views = views_of(data.get('data_samples'))
        if not training or self.batch_augments is None or views is None:
            return super().forward(data, training)
        with global_rng_kept():
            seed_global_rng(views[0].seed, views[0].epoch, digest(views), 1)
            return super().forward(data, training)
