"""Preprocessing of a run's validation images, in the terms of timm's transforms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from mldr_kd_mm.apis.run_record import dataset_of, dicts, plain, type_name, validation_part
from mldr_kd_mm.models.data_preprocessor import statistics
from mldr_kd_mm.utils.errors import are_sizes, is_number

# These load RGB images, mmpretrain's other data sets BGR, before any `to_rgb`.
_RGB_DATA = {'CIFAR10', 'CIFAR100', 'VerifiedCIFAR100'}
_LOADING = ('LoadImageFromFile', 'PackInputs', 'PackPlanes')
_INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


class Preprocessing(NamedTuple):
    """What turns an image into the student's input.

    Attributes:
        size: (H, W) of the input, in pixels.
        scale: (H, W) that the image is resized to before its centre is cropped.
        crop_mode: ``'center'`` keeps the aspect ratio, so that the short edge gets its ``scale``;
            ``'squash'`` does not.
        interpolation: Name of the filter.
        backend: Library that resizes in the validation, ``'pillow'`` or ``'cv2'``; None if the
            validation has steps other than resizing and cropping the centre.
        mean: Mean of each channel, of pixel values from 0 to 255.
        std: Standard deviation of each channel.
        channel_order: RGB or BGR, or None if the config does not state it.
        deviation: Why the images of the validation differ from these; empty if they do not.
    """

    size: tuple[int, ...]
    scale: tuple[int, ...]
    crop_mode: str
    interpolation: str
    backend: str | None
    mean: list[float]
    std: list[float]
    channel_order: str | None
    deviation: str

    @classmethod
    def of(
        cls, run: Mapping[str, Any], model: nn.Module, input_size: Sequence[int]
    ) -> Preprocessing:
        """Read the preprocessing from the pipeline of the validation set.

        Args:
            run: The run's config.
            model: The student.
            input_size: (3, H, W) of its images.
        """
        size = tuple(input_size[1:])
        steps = dicts(validation_part(run).get('pipeline'))
        mean, std = (values.flatten().tolist() for values in statistics(model.data_preprocessor))
        found = _resizing([step for step in steps if type_name(step) not in _LOADING], size)
        order = _channel_order(run, model)
        backend = 'cv2' if any(map(_is_resized_by_opencv, steps)) else 'pillow'
        if found is None:
            names = ', '.join(plain(type_name(step)) for step in steps) or 'not recorded'
            deviation = f'its steps are {names}'
            found, backend = (size, 'center', 'bilinear'), None
        elif order != 'RGB':
            deviation = f'the channel order is {order or "not recorded"}, here RGB'
        elif any(step.get('color_type', 'color') != 'color' for step in steps):
            deviation = 'it reads images in another way'
        elif backend == 'cv2':
            deviation = 'it resizes with OpenCV, here Pillow does'
        else:
            deviation = ''
        return cls(size, *found, backend, mean, std, order, deviation)

    @property
    def resize(self) -> dict[str, Any] | None:
        """How the validation resizes, or None if it does more than resize and crop the centre."""
        if self.backend is None:
            return None
        return dict(
            scale=list(self.scale),
            crop_mode=self.crop_mode,
            crop_pct=_crop_fraction(self.size, self.scale),
            interpolation=self.interpolation,
            backend=self.backend,
        )

    def timm_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``timm.data.create_transform``."""
        return dict(
            input_size=(3, *self.size),
            interpolation=self.interpolation,
            mean=[round(value / 255, 8) for value in self.mean],
            std=[round(value / 255, 8) for value in self.std],
            crop_pct=_crop_fraction(self.size, self.scale),
            crop_mode=self.crop_mode,
        )

    def code(self) -> list[str]:
        """Return Python that reads ``image.jpg`` into ``images``, float32 (1, 3, H, W)."""
        (height, width), (scaled_height, scaled_width) = self.size, self.scale
        if self.crop_mode == 'squash':
            size = f'({scaled_width}, {scaled_height})'
        else:
            size = f'[{scaled_height} * side // min(image.size) for side in image.size]'
        lines = [
            'import numpy',
            'from PIL import Image, ImageOps',
            '',
            "image = ImageOps.exif_transpose(Image.open('image.jpg')).convert('RGB')",
            f'size = {size}',
            f'image = image.resize(size, Image.Resampling.{self.interpolation.upper()})',
        ]
        if self.scale != self.size:
            lines += [
                f'left, top = round((size[0] - {width}) / 2), round((size[1] - {height}) / 2)',
                f'image = image.crop((left, top, left + {width}, top + {height}))',
            ]
        pixels = 'numpy.asarray(image)' + ('[..., ::-1]' if self.channel_order == 'BGR' else '')
        mean, std = ([round(value, 4) for value in values] for values in (self.mean, self.std))
        return [
            *lines,
            f'pixels = ({pixels} - {mean}) / {std}',
            "images = pixels.transpose(2, 0, 1)[None].astype('float32')",
        ]


def image_size(dataset: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return (H, W) of the images of a data set, or None if its pipeline does not set it.

    Args:
        dataset: Its config.
    """
    for step in reversed(dicts(dataset.get('pipeline'))):
        if type_name(step) in ('CenterCrop', 'RandomCrop'):
            return _pair(step.get('crop_size'))
        is_resize = type_name(step) == 'Resize' and not step.get('keep_ratio')
        if is_resize or type_name(step) == 'RandomResizedCrop':
            return _pair(step.get('scale'))
    return None


def _resizing(
    steps: Sequence[Mapping[str, Any]], size: tuple[int, ...]
) -> tuple[tuple[int, ...], str, str] | None:
    """Return scale, crop mode and interpolation; None if timm has no such transform."""
    kinds = [type_name(step) for step in steps]
    if not kinds:
        return size, 'squash', 'bilinear'
    resize, scale = steps[0], _pair(steps[0].get('scale'))
    crop = _pair(steps[-1].get('crop_size'))
    if kinds == ['Resize'] and not resize.get('keep_ratio'):
        crop, mode = scale, 'squash'
    elif kinds == ['Resize', 'CenterCrop'] and not resize.get('keep_ratio'):
        mode = 'squash'
    elif kinds == ['ResizeEdge', 'CenterCrop'] and resize.get('edge', 'short') == 'short':
        mode = 'center'
    else:
        return None
    interpolation = resize.get('interpolation', 'bilinear')
    fits = (
        scale is not None
        and crop == size
        and interpolation in _INTERPOLATIONS
        and _crop_fraction(size, scale) is not None
    )
    return (scale, mode, interpolation) if fits else None


def _crop_fraction(size: Sequence[int], scale: Sequence[int]) -> float | None:
    """Return the shortest fraction from which timm computes the scale, by rounding down."""
    for digits in range(1, 9):
        most = math.floor(size[0] / scale[0] * 10**digits)
        for number in (most, most - 1):  # a quotient may be rounded down below the scale
            fraction = number / 10**digits
            if number > 0 and [math.floor(side / fraction) for side in size] == list(scale):
                return fraction
    return None


def _pair(value: Any) -> tuple[int, ...] | None:
    """Return (H, W) from a size in a pipeline, which is one number or (W, H)."""
    if is_number(value, int):
        value = (value, value)
    return tuple(value[::-1]) if are_sizes(value, 2) else None


def _is_resized_by_opencv(step: Mapping[str, Any]) -> bool:
    return type_name(step) in ('Resize', 'ResizeEdge') and step.get('backend', 'cv2') != 'pillow'


def _channel_order(run: Mapping[str, Any], model: nn.Module) -> str | None:
    """Return RGB or BGR, or None if the config does not state it."""
    dataset = validation_part(run) or dataset_of(run, 'train_dataloader')
    steps = map(type_name, dicts(dataset.get('pipeline')))
    if type_name(dataset) in _RGB_DATA:
        order = 'RGB'
    elif 'LoadImageFromFile' in steps:
        order = 'BGR'
    else:
        return None
    return order[::-1] if model.data_preprocessor.to_rgb else order
