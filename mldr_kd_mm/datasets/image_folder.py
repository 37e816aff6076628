"""Image folders with one subfolder per class."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from mldr_kd_mm.datasets.folder import EXTENSIONS, FolderDataset, list_images, warn_of_unread
from mldr_kd_mm.datasets.splits import (
    check_not_splits,
    find_split_folders,
    hold_out,
    visible_folders,
)
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError, is_number
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.utils.run_identity import hash_file

_UNCOMPRESSED = ('.bmp', '.pgm', '.ppm', '.tif', '.tiff')


@DATASETS.register_module()
class ImageFolder(FolderDataset):
    """Your own images, in folders named after their classes.

    Either the folder has both splits::

        data_root/
          train/<class>/.../<image>
          val/<class>/.../<image>

    or it has only images, and a part of each class is held out for validation::

        data_root/
          <class>/.../<image>

    With ``val/`` alone, ``split='val'`` can be read and ``'train'`` cannot.

    The names of the splits count in any case: ``train`` or ``training``; ``val``, ``valid``,
    ``validation``, ``dev``, ``eval`` or ``evaluation``; and ``test`` or ``testing``, which is used
    only if there is no validation folder. Other folders beside ``train`` are named in a warning.

    Each image is held out or not by a hash of ``seed`` and its path in the folder, so adding images
    moves no other image from training to validation. Classes are numbered by their sorted names, as
    in torchvision's ``ImageFolder``. Links to folders are followed. Hidden files and folders are
    skipped; other files without the extension of an image are counted in a warning.

    The pipeline receives a dict with ``img_path`` and ``gt_label`` and starts with
    ``LoadImageFromFile``.

    Args:
        data_root: The folder.
        split: ``'train'`` or ``'val'``.
        val_fraction: Expected fraction of each class that is held out, at least one image; unused
            if there is a folder for validation.
        seed: Seed of the choice of the held-out images.
        **kwargs: ``pipeline`` and other arguments of mmpretrain's BaseDataset. ``classes`` is the
            order of the classes, by the names of their folders; by default it is alphabetical.

    Attributes:
        train_folder: Folder of the classes with the training images, or None if there is only
            ``val_folder``.
        val_folder: Folder of the classes with the validation images, or None if they are held out
            of ``train_folder``.

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
        for name in ('ann_file', 'data_prefix', 'filter_cfg'):
            if kwargs.get(name):
                raise ConfigError(
                    f'{name}={kwargs[name]!r}: must be left out, as the folders alone select the '
                    'images'
                )
        self.val_fraction = val_fraction
        self.seed = seed
        super().__init__(data_root, split, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``{'img_path': str, 'gt_label': int}`` for each image."""
        self.train_folder, self.val_folder, unused = find_split_folders(Path(self.data_root))
        if unused:
            _warn(f'data_root={self.data_root!r}: not used: {", ".join(f"{n}/" for n in unused)}')
        if self.train_folder is None and self.split == 'train':
            raise ConfigError(
                f"data_root={self.data_root!r}: has '{self.val_folder.name}' but no train/; move "
                'the folders of the classes into train/'
            )
        # Links must not lead to the images of another class or split.
        owners: dict[str, tuple[Path, str]] = {}
        train, val = (
            None if folder is None else _images_by_class(folder, owners)
            for folder in (self.train_folder, self.val_folder)
        )
        if val is None:
            chosen = {name: self._part(paths, name) for name, paths in train.items()}
        else:
            if train is not None:
                _check_same_classes(self.train_folder, train, self.val_folder, val)
            chosen = val if self.split == 'val' else train
        if order := self._metainfo.get('classes'):
            if sorted(order) != sorted(chosen):
                raise ConfigError(
                    f'classes={tuple(order)!r}: must be the names of the folders of all classes, '
                    f'in any order: {", ".join(map(repr, chosen))}'
                )
            chosen = {name: chosen[name] for name in order}
        self._metainfo['classes'] = tuple(chosen)
        return [
            {'img_path': str(path), 'gt_label': label}
            for label, paths in enumerate(chosen.values())
            for path in paths
        ]

    def names(self) -> list[str]:
        """Return the path of each image in the folder of its split, with ``/`` on all systems."""
        folder = self.val_folder if self.split == 'val' and self.val_folder else self.train_folder
        paths = (self.get_data_info(index)['img_path'] for index in range(len(self)))
        return [Path(path).relative_to(folder).as_posix() for path in paths]

    def fingerprint(self) -> str:
        """Return a hash of the names and sizes of all images, 64 hexadecimal digits.

        Images in formats without compression, which often have the same size, count by content.
        """
        state = hashlib.sha256()
        for index, name in enumerate(self.names()):
            path = self.get_data_info(index)['img_path']
            is_raw = name.lower().endswith(_UNCOMPRESSED)
            facts = hash_file(path) if is_raw else os.path.getsize(path)
            state.update(os.fsencode(f'{name}\0{facts}\n'))
        return state.hexdigest()

    def _part(self, paths: list[Path], name: str) -> list[Path]:
        """Return the images of a class that belong to this split."""
        if len(paths) < 2:
            raise ConfigError(
                f'data_root={self.data_root!r}: class {name!r} has {len(paths)} image, too few to '
                f'hold out val_fraction={self.val_fraction}; add images or remove the class'
            )
        names = [path.relative_to(self.train_folder).as_posix() for path in paths]
        held_out = hold_out(names, self.val_fraction, self.seed)
        return [
            path
            for path, name in zip(paths, names, strict=True)
            if (name in held_out) == (self.split == 'val')
        ]


def _images_by_class(folder: Path, owners: dict[str, tuple[Path, str]]) -> dict[str, list[Path]]:
    """Return the images of each class, after checking that the folder holds classes.

    Args:
        folder: The folder of the classes.
        owners: Folder on disk -> the class folder and the path in which it was read.
    """
    broken = next((path for path in folder.iterdir() if not path.exists()), None)
    if broken:  # it may be a class
        raise ConfigError(f"data_root: '{broken}' is a broken link; repair or remove it")
    classes = visible_folders(folder)
    others: list[Path] = []
    images = {path.name: list_images(path, owners, others) for path in classes}
    loose = sum(path.suffix.lower() in EXTENSIONS for path in folder.iterdir() if path.is_file())
    if loose:
        _warn(
            f"data_root: not read: {plural(loose, 'image')} in '{folder}' outside the folders of "
            'classes'
        )
    warn_of_unread(folder, others)
    if not any(images.values()):
        raise ConfigError(
            f"data_root: there are no images in '{folder}'; must have a folder for each class with "
            f'files that end in {", ".join(EXTENSIONS)}'
        )
    for path in classes:
        if not images[path.name]:
            raise ConfigError(f"data_root: '{path}' holds no images; add some or remove the folder")
    sub_folders = {path.name: {sub.name for sub in visible_folders(path)} for path in classes}
    if len(classes) == 1:
        instead = f", or give '{classes[0]}'" if len(sub_folders[classes[0].name]) > 1 else ''
        raise ConfigError(
            f"data_root: '{folder}' has one class, {classes[0].name!r}; must have folders for two "
            f'or more classes{instead}'
        )
    warning = check_not_splits(folder, sub_folders)
    if warning:
        _warn(warning)
    return images


def _warn(text: str) -> None:
    print_log(text, 'current', logging.WARNING)


def _check_same_classes(train: Path, images: dict, val: Path, held_out: dict) -> None:
    for here, missing in ((train, set(held_out) - set(images)), (val, set(images) - set(held_out))):
        if missing:
            names = ', '.join(map(repr, sorted(missing)[:4]))
            more = f' and {len(missing) - 4} more' if len(missing) > 4 else ''
            raise ConfigError(
                f"data_root: '{train}' has {len(images)} classes, '{val}' {len(held_out)}; must be "
                f"the same, but '{here}' lacks {names}{more}"
            )
