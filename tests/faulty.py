"""Data, models and metrics that inject faults or make them visible."""

from __future__ import annotations

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine import dist
from mmengine.evaluator import BaseMetric
from mmpretrain.models import ImageClassifier

from mldr_kd_mm.registry import METRICS, MODELS, TRANSFORMS


@TRANSFORMS.register_module()
class Spoil(BaseTransform):
    """Convert images to float and put a NaN into those of some samples."""

    def __init__(self, indices):
        self.indices = indices

    def transform(self, results):
        results['img'] = results['img'].astype(np.float32)
        if results['sample_idx'] in self.indices:
            results['img'][0, 0, 0] = np.nan
        return results


@TRANSFORMS.register_module()
class Darken(BaseTransform):
    """Darken the images on every rank but the first, so that ranks differ in their statistics."""

    def transform(self, results):
        results['img'] = results['img'] // (1 + 3 * dist.get_rank())
        return results


@MODELS.register_module()
class FaultyClassifier(ImageClassifier):
    """Classifier with a second loss of zero that is faulty in some steps.

    Args:
        loss: Forward passes, counted from 0, whose second loss is NaN without a gradient.
        gradient: Forward passes whose second loss is finite but has a non-finite gradient.
        ranks: Ranks on which the faults occur.
    """

    def __init__(self, loss=(), gradient=(), ranks=(0,), **kwargs):
        super().__init__(**kwargs)
        self.faults = dict(loss=loss, gradient=gradient)
        self.ranks = ranks
        self.forwards = 0

    def loss(self, inputs, data_samples):
        losses = super().loss(inputs, data_samples)
        zero = losses['loss'] * 0
        # The square root of zero has an infinite slope.
        wrong = dict(loss=zero.detach() * torch.nan, gradient=zero.sqrt())
        losses['loss_second'] = zero
        for kind, forwards in self.faults.items():
            if self.forwards in forwards and dist.get_rank() in self.ranks:
                losses['loss_second'] = wrong[kind]
        self.forwards += 1
        return losses


@METRICS.register_module()
class SampleCount(BaseMetric):
    """Count the validated samples and the distinct ones among them."""

    def process(self, data_batch, data_samples):
        self.results += [sample['sample_idx'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(samples=len(results), different=len(set(results)))
