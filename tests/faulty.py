"""Data and models that go wrong where a test tells them to."""

from __future__ import annotations

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine import dist
from mmpretrain.models import ImageClassifier

from mldr_kd_mm.registry import MODELS, TRANSFORMS


@TRANSFORMS.register_module()
class Spoil(BaseTransform):
    """Images of floats, those of some samples with a NaN in them."""

    def __init__(self, indices):
        self.indices = indices

    def transform(self, results):
        results['img'] = results['img'].astype(np.float32)
        if results['sample_idx'] in self.indices:
            results['img'][0, 0, 0] = np.nan
        return results


@MODELS.register_module()
class FaultyClassifier(ImageClassifier):
    """A second loss of zero, in some steps wrong.

    Args:
        loss: The forward passes, counted from 0, whose second loss is NaN.
        gradient: Those whose second loss is finite and its gradient is not.
        ranks: The processes that are concerned.
    """

    def __init__(self, loss=(), gradient=(), ranks=(0,), **kwargs):
        super().__init__(**kwargs)
        self.faults = dict(loss=loss, gradient=gradient)
        self.ranks = ranks
        self.forwards = 0

    def loss(self, inputs, data_samples):
        losses = super().loss(inputs, data_samples)
        # The square root of zero has an infinite slope.
        zero = losses['loss'] * 0
        wrong = dict(loss=zero * torch.nan, gradient=zero.sqrt())
        losses['loss_second'] = zero
        for kind, forwards in self.faults.items():
            if self.forwards in forwards and dist.get_rank() in self.ranks:
                losses['loss_second'] = wrong[kind]
        self.forwards += 1
        return losses
