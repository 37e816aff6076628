"""Image folders with one subfolder per class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mldr_kd_mm.datasets.folder import FolderDataset
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError, is_number

EXTENSIONS = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VAL_FOLDERS = ('val', 'test')


@DATASETS.register_module()
class ImageFolder(FolderDataset):
    """Your own images, in folders named after their classes.

    Either the folder has both splits::

        data_root/
          train/<class>/.../<image>
          val/<class>/.../<image>       or test/

    or it has only images, and a part of each class is held out for validation::

        data_root/
          <class>/.../<image>

    The held-out images depend only on ``seed`` and the file names. Classes are numbered by their
    sorted names, as in torchvision's ``ImageFolder``. Files and folders whose name starts with a
    dot and files without an image's extension are skipped.

    The pipeline receives a dict with ``img_path`` and ``gt_label`` and starts with
    ``LoadImageFromFile``.

    Args:
        data_root: The folder.
        split: ``'train'`` or ``'val'``.
        val_fraction: Fraction of each class that is held out, at least one image; unused if there
            is a ``val/`` or ``test/``.
        seed: Seed of the choice of the held-out images.
        **kwargs: ``pipeline`` and other arguments of mmpretrain's BaseDataset.

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
        if not is_number(val_fraction) or not 0 < val_fraction < 1:
            raise ConfigError(f'val_fraction={val_fraction!r}: must be a number between 0 and 1')
        self.val_fraction = val_fraction
        self.seed = seed
        super().__init__(data_root, split, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``{'img_path': str, 'gt_label': int}`` for each image."""
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

    def _part(self, paths: list[Path], name: str) -> list[Path]:
        """Return the images of a class that belong to this split."""
        count = max(1, round(len(paths) * self.val_fraction))
        if count >= len(paths):
            raise ConfigError(
                f'data_root={self.data_root!r}: class {name!r} has {len(paths)} image, too few to '
                f'hold out val_fraction={self.val_fraction}; add images or remove the class'
            )
        # RandomState's numbers are the same in every version of NumPy.
        order = np.random.RandomState(self.seed).permutation(len(paths))
        held_out = set(order[:count].tolist())
        return [path for i, path in enumerate(paths) if (i in held_out) == (self.split == 'val')]


def _split_folders(root: Path) -> tuple[Path, Path | None]:
    """Return the folders of both splits; the second is None if the first holds all images."""
    if not root.is_dir():
        raise ConfigError(
            f"data_root='{root}': there is no such folder; must be one with train/ and val/, or "
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
            f"data_root: there are no images in '{folder}'; must have a folder for each class with "
            f'files that end in {", ".join(EXTENSIONS)}'
        )
    for name, paths in images.items():
        if not paths:
            raise ConfigError(
                f"data_root: '{folder / name}' holds no images; add some or remove the folder"
            )
    if len(images) == 1:
        raise ConfigError(
            f"data_root: '{folder}' has one class, {classes[0]!r}; must have folders for two or "
            'more classes'
        )
    return images


def _images(folder: Path) -> list[Path]:
    """Return the sorted paths of all images in and below a folder."""
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
                f"data_root: '{train}' has {len(images)} classes, '{val}' {len(held_out)}; must be "
                f"the same, but '{here}' lacks {names}{more}"
            )
