"""Drawn shapes of random size, position and colour."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from mldr_kd_mm.registry import DATASETS

SIZE = 64  # pixels


@DATASETS.register_module()
class Shapes(BaseDataset):
    """Images of squares, discs, diamonds and rings, determined by a seed.

    Each item that enters the pipeline is a dict with ``img``, uint8 (64, 64, 3), and ``gt_label``.

    Args:
        num_images: Number of images; the classes alternate.
        seed: Seed of the images.
        **kwargs: ``pipeline`` and the other arguments of mmpretrain's BaseDataset.
    """

    METAINFO = {'classes': ('square', 'disc', 'diamond', 'ring')}

    def __init__(self, num_images: int, seed: int = 0, **kwargs: Any) -> None:
        self.num_images = num_images
        self.seed = seed
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return a dict ``{'img': uint8 (64, 64, 3), 'gt_label': int}`` per image."""
        random = np.random.default_rng(self.seed)
        labels = np.arange(self.num_images) % len(self.METAINFO['classes'])
        return [{'img': _draw(int(label), random), 'gt_label': int(label)} for label in labels]


def _draw(label: int, random: np.random.Generator) -> np.ndarray:
    radius = random.integers(10, 20)
    y, x = np.abs(np.mgrid[:SIZE, :SIZE] - random.integers(20, SIZE - 20, (2, 1, 1)))
    distance = [np.maximum(x, y), np.hypot(x, y), x + y, np.hypot(x, y)][label]
    inside = distance <= radius
    if label == 3:
        inside &= distance > radius / 2
    colours = random.integers(0, 256, (2, 3), dtype=np.uint8)
    return colours[inside.astype(int)]
