"""A folder of images, a folder a class, with its own validation images or without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from mmpretrain.datasets import BaseDataset

from mldr_kd_mm.datasets.folder import check_image
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError, is_number

EXTENSIONS = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VAL_FOLDERS = ('val', 'test')


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images of your own, in folders that are named like their classes.

    Either both splits are there::

        data_root/
          train/<class>/.../<image>
          val/<class>/.../<image>       or test/

    or the images are, and are split here, each class by itself::

        data_root/
          <class>/.../<image>

    Which images are held out depends on ``seed`` and the names of the files alone. Classes are
    numbered in the order of their sorted names, as torchvision's ``ImageFolder`` numbers them.
    Files and folders whose name starts with a dot, and files that are no images by their
    extension, are left out.

    Every item that enters the pipeline is a dict with ``img_path`` and ``gt_label``, so a pipeline
    starts with ``LoadImageFromFile``.

    Args:
        data_root: The folder.
        split: ``'train'`` or ``'val'``.
        val_fraction: The part of each class that is held out, one image at least; read only where
            there is no ``val/`` or ``test/``.
        seed: Of that choice.
        **kwargs: ``pipeline`` and the other arguments of mmpretrain's BaseDataset.

    Raises:
        ConfigError: An argument is out of range, the folder does not follow the layout, there are
            fewer than two classes, a class has too few images, or the splits' classes differ.
    """

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        *,
        val_fraction: float = 0.1,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if split not in ('train', 'val'):
            raise ConfigError(f"split={split!r}: must be 'train' or 'val'")
        if not is_number(val_fraction) or not 0 < val_fraction < 1:
            raise ConfigError(f'val_fraction={val_fraction!r}: must be a number between 0 and 1')
        self.split = split
        self.val_fraction = val_fraction
        self.seed = seed
        super().__init__(ann_file='', data_root=os.path.expanduser(data_root), **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return one ``{'img_path': str, 'gt_label': int}`` an image."""
        train, val = _split_folders(Path(self.data_root))
        images = _images_by_class(train)
        if val is not None:
            held_out = _images_by_class(val)
            _check_same_classes(train, images, val, held_out)
            chosen = held_out if self.split == 'val' else images
        else:
            chosen = {name: self._part(paths, name) for name, paths in images.items()}
        self._metainfo['classes'] = tuple(chosen)
        return [
            {'img_path': str(path), 'gt_label': label}
            for label, paths in enumerate(chosen.values())
            for path in paths
        ]

    def prepare_data(self, idx: int) -> Any:
        """Return what the pipeline makes of one image.

        Raises:
            ConfigError: The file is no whole image, or one of more pixels than OpenCV takes.
        """
        try:
            return super().prepare_data(idx)
        except Exception:
            # Any step may have failed; only then is it worth to read the image once more.
            check_image(self.get_data_info(idx)['img_path'], 'replace or remove it')
            raise

    def extra_repr(self) -> list[str]:
        """The lines that ``repr`` adds."""
        return [f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}']

    def _part(self, paths: list[Path], name: str) -> list[Path]:
        """The images of a class that are in this split."""
        count = max(1, round(len(paths) * self.val_fraction))
        if count >= len(paths):
            raise ConfigError(
                f'data_root={self.data_root!r}: class {name!r} has {len(paths)} image, too few to '
                f'hold out val_fraction={self.val_fraction} of it: add images, or remove the class'
            )
        order = np.random.RandomState(self.seed).permutation(len(paths))  # never changes
        held_out = set(order[:count].tolist())
        return [path for i, path in enumerate(paths) if (i in held_out) == (self.split == 'val')]


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """Where the images to train and to validate on are; None if the former hold both."""
    if not root.is_dir():
        raise ConfigError(
            f"data_root='{root}': there is no such folder: must be one with train/ and val/, or "
            'with a folder of images for each class'
        )
    train = root / 'train'
    if not train.is_dir():
        return root, None
    return train, next((root / name for name in VAL_FOLDERS if (root / name).is_dir()), None)


def _images_by_class(folder: Path) -> dict[str, list[Path]]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))
    images = {name: _images(folder / name) for name in classes}
    if not any(images.values()):
        raise ConfigError(
            f"data_root: there are no images in '{folder}': must have a folder for each class, "
            f'with files that end in {", ".join(EXTENSIONS)}'
        )
    for name, paths in images.items():
        if not paths:
            raise ConfigError(
                f"data_root: '{folder / name}' holds no images: add some, or remove the folder"
            )
    if len(images) == 1:
        raise ConfigError(
            f"data_root: '{folder}' has one class, {classes[0]!r}: must have a folder for each of "
            'two classes or more'
        )
    return images


def _images(folder: Path) -> list[Path]:
    """All images in and below a folder, sorted."""
    return sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith('.') for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _check_same_classes(train: Path, images: dict, val: Path, held_out: dict) -> None:
    for here, missing in ((train, set(held_out) - set(images)), (val, set(images) - set(held_out))):
        if missing:
            names = ', '.join(map(repr, sorted(missing)[:4]))
            more = f' and {len(missing) - 4} more' if len(missing) > 4 else ''
            raise ConfigError(
                f"data_root: '{train}' has {len(images)} classes, '{val}' {len(held_out)}: must be "
                f"the same; '{here}' lacks {names}{more}"
            )
