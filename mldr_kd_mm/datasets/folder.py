"""Base class of data sets whose images are files."""

from __future__ import annotations

import functools
import logging
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import cv2
from mmcv import imfrombytes
from mmengine.fileio import get
from mmengine.logging import print_log
from mmpretrain.datasets import BaseDataset
from PIL import Image

from mldr_kd_mm.utils.errors import ConfigError, check_choice, check_positive, printable
from mldr_kd_mm.utils.limits import MAX_PIXELS
from mldr_kd_mm.utils.logging import plural

EXTENSIONS = (
    '.bmp',
    '.jfif',
    '.jpe',
    '.jpeg',
    '.jpg',
    '.pgm',
    '.png',
    '.ppm',
    '.tif',
    '.tiff',
    '.webp',
)
"""Suffixes of the files that every supported version of OpenCV reads as images."""


class FolderDataset(BaseDataset):
    """Data set of image files with a training and a validation split.

    A subclass implements ``load_data_list``, which returns a dict with ``img_path`` and
    ``gt_label`` for each image and may set ``self._metainfo['classes']``. A pipeline starts with
    ``LoadImageFromFile``. The error for a file that cannot be read names the file.

    Args:
        data_root: Folder of the data set.
        split: ``'train'`` or ``'val'``.
        max_pixels: Largest size of an image. The size is read from the header, so a larger image
            takes no memory. None: no limit but OpenCV's. Files in remote storage are not checked.
        **kwargs: ``pipeline`` and other arguments of mmpretrain's BaseDataset.

    Raises:
        ConfigError: Unknown ``split``, or ``max_pixels`` is not a positive integer.
    """

    REMEDY = 'replace or remove it'
    """What to do about a file that cannot be read, for the error message."""

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        *,
        max_pixels: int | None = MAX_PIXELS,
        **kwargs: Any,
    ) -> None:
        check_choice(('train', 'val'), split=split)
        if max_pixels is not None:
            check_positive(max_pixels=max_pixels)
        self.split = split
        self.max_pixels = max_pixels
        super().__init__(ann_file='', data_root=os.path.expanduser(data_root), **kwargs)

    def prepare_data(self, idx: int) -> Any:
        """Return the pipeline's result for one image.

        Raises:
            ConfigError: The file is not a complete image, has more pixels than ``max_pixels`` or
                OpenCV accept, is a TIFF with transparent pixels, or has values that would be lost
                in 8 bits: floating-point numbers, 32-bit integers, or 14 bits or fewer of 16.
        """
        info = self.get_data_info(idx)
        path = info['img_path']
        _check_header(path, self.max_pixels, self.REMEDY)
        try:
            return self.pipeline(info)
        except Exception:
            # Any step may have failed, so read the image again to find out if it is the cause.
            _check_image(path, self.REMEDY)
            raise

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds."""
        return [f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}']


def list_images(
    folder: Path,
    owners: dict[str, tuple[Path, str]],
    others: list[Path],
    field: str = 'data_root',
) -> list[Path]:
    """Return the sorted paths of all images in and below a folder.

    Args:
        folder: The folder, such as that of a class.
        owners: Folder on disk -> the ``folder`` that it was found for, and its path there; new ones
            are added.
        others: Paths of other files; new ones are added.
        field: Name of the argument with the folder, for errors.

    Raises:
        ConfigError: A folder cannot be listed, or a link leads to one that another folder has read.
    """

    def stop(error: OSError) -> NoReturn:
        raise ConfigError(f"{field}: '{error.filename}' cannot be listed: {error.strerror}")

    images = []
    for place, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(place)
        owner = owners.setdefault(real, (folder, place))
        if owner[0] != folder:
            raise ConfigError(
                f"{field}: '{place}' and '{owner[1]}' are the same folder, through a link; "
                'remove the link'
            )
        if owner[1] != place:  # a second link to a folder of the same class
            folders.clear()
            continue
        # Sorted, so that the same of two links to a folder counts on every machine.
        folders[:] = sorted(name for name in folders if not name.startswith('.'))
        for path in (Path(place, name) for name in files if not name.startswith('.')):
            is_image = path.suffix.lower() in EXTENSIONS and path.is_file()
            (images if is_image else others).append(path)
    return sorted(images)


def unread_files(others: Sequence[Path], field: str, folders: Sequence[str]) -> str:
    """Return a warning of files that are not read, so that no image is left out silently.

    Args:
        others: Paths of the files, at least one.
        field: Name of the argument with the folders.
        folders: The folders that were searched.
    """
    kinds = Counter(map(_kind, others)).most_common(8)
    counts = ', '.join(f'{count} {printable(kind)}' for kind, count in kinds)
    more = f' and {plural(len(folders) - 1, "other folder")}' if folders[1:] else ''
    return (
        f"{field}: not read: {plural(len(others), 'file')} in '{folders[0]}'{more} ({counts}); "
        f'images must end in {", ".join(EXTENSIONS)}'
    )


def warn_of_unread(folder: Path, others: Sequence[Path]) -> None:
    """Warn of files of a data set that are not read.

    Args:
        folder: The folder that was searched.
        others: Paths of the files.
    """
    if others:
        text = unread_files(others, 'data_root', [str(folder)])
        print_log(text, 'current', logging.WARNING)


def _kind(path: Path) -> str:
    if path.is_file():
        return path.suffix.lower() or 'without a suffix'
    return 'no regular files' if path.exists() else 'broken links'


def _check_header(path: str, max_pixels: int | None, remedy: str) -> None:
    """Refuse an image by its header, before it is decoded.

    A file of 100 kB can unpack to gigabytes, and a pipeline reads all values as 8 bits. Reading a
    named pipe would wait for ever.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f'{path}: cannot be read as an image (it is no regular file); {remedy}')
    try:
        pixels, depth = _read_header(path)
    except FileNotFoundError:
        return  # in remote storage, or the pipeline reports it
    except Exception as error:  # a damaged header raises almost anything
        if max_pixels is None:
            return
        reason = printable(error) or 'it is damaged'
    else:
        if max_pixels is not None and pixels > max_pixels:
            reason = f'it has {pixels} pixels, must have at most {max_pixels}'
            remedy = f'{remedy}, or set max_pixels={pixels} for the data set'
        elif lost := _lost_values(path, depth):
            reason, remedy = lost
        else:
            return
    raise ConfigError(f'{path}: cannot be read as an image ({reason}); {remedy}')


def _read_header(path: str) -> tuple[int, str]:
    """Return the number of pixels and Pillow's names of their format: ``RGB RGB;16B TIFF``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path) as image:
                options = image.tile[0][3] if image.tile else ''
                stored = options[0] if isinstance(options, tuple) else options
                if image.format == 'PPM' and isinstance(options, tuple) and options[-1] > 255:
                    stored = f'{image.mode};16'
                return math.prod(image.size), f'{image.mode} {stored} {image.format}'
    except Image.DecompressionBombError as error:
        # Pillow's own limit comes first.
        return int(re.search(r'\d+', str(error))[0]), ''


def _lost_values(path: str, depth: str) -> tuple[str, str] | None:
    """Return why OpenCV does not read the values of an image, and a remedy; None if it does."""
    if depth.endswith('TIFF') and depth.split()[0] in ('RGBA', 'LA'):
        with Image.open(path) as image:
            if image.getchannel('A').getextrema()[0] < 255:
                reason = 'OpenCV would blend its transparent pixels into black'
                return reason, 'save it without transparency, or as PNG'
    remedy = 'convert it to 8 bits, scaled from the range of your data'
    if ';16' in depth:
        image = cv2.imread(path, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_COLOR)
        highest = 0 if image is None else int(image.max())  # the pipeline reports a damaged one
        # The 8 highest bits are kept, so images of a 10-, 12- or 14-bit camera would be dark.
        if 0 < highest < 2**14:
            return f'it has 16 bits per channel, but values up to {highest} only', remedy
        _warn_of_16_bits()
    elif depth[:1] in ('F', 'I'):
        kind = 'floating-point numbers' if depth[0] == 'F' else '32-bit integers'
        return f'its values are {kind}', remedy
    return None


@functools.cache
def _warn_of_16_bits() -> None:
    """Warn once in each process."""
    print_log(
        'images have 16 bits per channel, of which the upper 8 are used; timm and Pillow clip such '
        'images instead, so convert them to 8 bits before you use the exported student',
        'current',
        logging.WARNING,
    )


def _check_image(path: str, remedy: str) -> None:
    try:
        reason = 'it is damaged' if imfrombytes(get(path)) is None else None
    except Exception as error:  # raised by OpenCV or the file backend
        reason = str(error).strip().splitlines()[0]
    if reason:
        raise ConfigError(f'{path}: cannot be read as an image ({reason}); {remedy}')
