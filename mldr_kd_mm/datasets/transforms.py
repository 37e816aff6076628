"""Faster versions of mmpretrain's transforms."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmpretrain.datasets import PackInputs, RandomResizedCrop
from torch import Tensor

from mldr_kd_mm.registry import TRANSFORMS
from mldr_kd_mm.utils.errors import ConfigError


@TRANSFORMS.register_module()
class RandomResizedCropFlip(RandomResizedCrop):
    """mmpretrain's RandomResizedCrop followed by a horizontal RandomFlip, in one step.

    From the same state of NumPy's generator it makes the same images and leaves the generator in
    the same state. It is faster because it draws a box in fewer calls and flips before resizing,
    while a small image still has few pixels.

    Args:
        scale: Size of the result in pixels, (height, width) or one number for both.
        flip_prob: Probability of the flip.
        **kwargs: ``crop_ratio_range``, ``aspect_ratio_range`` and other arguments of mmpretrain's
            RandomResizedCrop.

    Raises:
        ConfigError: ``flip_prob`` is not a number from 0 to 1.
    """

    def __init__(self, scale: int | tuple[int, int], flip_prob: float = 0.5, **kwargs: Any) -> None:
        if not isinstance(flip_prob, Real) or not 0 <= flip_prob <= 1:
            raise ConfigError(f'flip_prob={flip_prob!r}: must be a number from 0 to 1')
        super().__init__(scale, **kwargs)
        self.flip_prob = flip_prob

    def rand_crop_params(self, img: np.ndarray) -> tuple[int, int, int, int]:
        """Draw top, left, height and width of a box with mmpretrain's draws, two in one call."""
        height, width = img.shape[:2]
        area, aspect = self.crop_ratio_range, self.aspect_ratio_range
        log_aspect = math.log(aspect[0]), math.log(aspect[1])
        for _ in range(self.max_attempts):
            first, second = np.random.random(2).tolist()
            target = (area[0] + (area[1] - area[0]) * first) * (height * width)
            ratio = math.exp(log_aspect[0] + (log_aspect[1] - log_aspect[0]) * second)
            w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if 0 < w <= width and 0 < h <= height:
                top = np.random.randint(0, height - h + 1)
                return top, np.random.randint(0, width - w + 1), h, w
        # Fall back to the largest central box with an allowed aspect ratio.
        w, h = min(width, round(height * aspect[1])), min(height, round(width / aspect[0]))
        return (height - h) // 2, (width - w) // 2, h, w

    def transform(self, results: dict) -> dict:
        """Replace ``img``, (H, W, C), and set ``img_shape``, ``flip`` and ``flip_direction``."""
        top, left, h, w = self.rand_crop_params(results['img'])
        image = results['img'][top : top + h, left : left + w]
        results['flip'] = np.random.random() < self.flip_prob
        results['flip_direction'] = 'horizontal' if results['flip'] else None
        if results['flip']:
            image = cv2.flip(image, 1)
        size = tuple(self.scale[::-1])
        results['img'] = mmcv.imresize(
            image, size, interpolation=self.interpolation, backend=self.backend
        )
        results['img_shape'] = results['img'].shape
        return results

    def __repr__(self) -> str:
        return f'{super().__repr__()[:-1]}, flip_prob={self.flip_prob})'


@TRANSFORMS.register_module()
class PackPlanes(PackInputs):
    """mmpretrain's PackInputs, faster for contiguous uint8 images.

    Other images, such as the strided views that CenterCrop and RandomFlip return, are packed by
    mmpretrain's code.
    """

    @staticmethod
    def format_input(input_: Any) -> Tensor | list[Tensor]:
        """Convert an image (H, W, C) to a contiguous tensor (C, H, W), as mmpretrain does."""
        is_image = isinstance(input_, np.ndarray) and input_.dtype == np.uint8 and input_.ndim == 3
        if not is_image or not input_.flags.c_contiguous:
            return PackInputs.format_input(input_)
        planes = np.empty((input_.shape[2], *input_.shape[:2]), np.uint8)
        cv2.split(input_, list(planes))
        return torch.from_numpy(planes)
