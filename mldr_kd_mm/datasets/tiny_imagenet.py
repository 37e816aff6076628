"""Tiny-ImageNet in its official layout."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mmengine.fileio import exists, get_text, join_path, list_dir_or_file

from mldr_kd_mm.datasets.folder import FolderDataset
from mldr_kd_mm.datasets.subset import ACCEPT, take_subset
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError

FOLDER = 'tiny-imagenet-200'
URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
IMAGENET_LICENCE = (
    "ImageNet's terms of access: non-commercial research and education only; the images belong to "
    'their owners'
)
NUM_CLASSES = 200
UNPACK_AGAIN = f'unpack {URL} again'
IMAGES_PER_CLASS = {'train': 500, 'val': 50}


@DATASETS.register_module()
class TinyImageNet(FolderDataset):
    """`Tiny-ImageNet <http://cs231n.stanford.edu/tiny-imagenet-200.zip>`_, 64 px, 200 classes.

    ::

        data_root/
          tiny-imagenet-200/
            wnids.txt                            one WordNet id per line
            words.txt                            id <tab> names
            train/<id>/images/<id>_<i>.JPEG
            val/images/val_<i>.JPEG
            val/val_annotations.txt              file <tab> id <tab> box

    Classes are numbered by their sorted ids, not in the order of ``wnids.txt``. torchvision's
    ``ImageFolder`` numbers them the same way, so checkpoints trained with it fit.
    ``metainfo['classes']`` holds their names from ``words.txt``.

    The pipeline receives a dict with ``img_path`` and ``gt_label`` and starts with
    ``LoadImageFromFile``, which gives uint8 (64, 64, 3) in BGR order, also for the 2 % of images
    that are grey. The layout is checked before training starts.

    Args:
        data_root: Directory that holds ``tiny-imagenet-200/``. Nothing is downloaded.
        split: ``'train'`` or ``'val'``. The official test split has no labels.
        verify: Whether to require the official number of images, 500 per class for training and
            50 for validation. False accepts one or more images per class.
        subset: None for the whole split, or ``dict(labels=[...], per_class=N)``, see
            :func:`~mldr_kd_mm.datasets.subset.take_subset`. Images are ordered by their numbers,
            so ``per_class`` keeps the lowest.
        **kwargs: ``pipeline`` and other arguments of mmpretrain's BaseDataset.

    Raises:
        ConfigError: Unknown ``split``; files are missing, do not follow the layout or are fewer
            than required; or ``subset`` asks for images that do not exist.
    """

    METAINFO = {'name': 'Tiny-ImageNet', 'licence': f'a part of ImageNet; {IMAGENET_LICENCE}'}
    REMEDY = UNPACK_AGAIN

    def __init__(
        self,
        data_root: str = '',
        split: str = 'train',
        *,
        verify: bool = True,
        subset: dict | None = None,
        **kwargs: Any,
    ) -> None:
        if split == 'test':
            raise ConfigError("split='test': the official test split has no labels, use 'val'")
        if not data_root:
            raise ConfigError(f"data_root='': must be the directory that holds {FOLDER}/")
        self.verify = verify
        self.subset = subset
        super().__init__(data_root, split, data_prefix=FOLDER, **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``{'img_path': str, 'gt_label': int}`` for each image."""
        self._check_data_root()
        wnids = _read_wnids(self.img_prefix)
        classes = self.CLASSES or _read_names(self.img_prefix, wnids)
        list_images = _list_train if self.split == 'train' else _list_val
        data_list = list_images(self.img_prefix, wnids)
        self._check_counts(data_list, wnids)
        data_list, self._metainfo['classes'] = take_subset(data_list, classes, self.subset)
        return data_list

    def _check_data_root(self) -> None:
        if exists(join_path(self.img_prefix, 'wnids.txt')):
            return
        if exists(join_path(self.data_root, 'wnids.txt')):
            raise ConfigError(
                f'data_root={self.data_root!r} holds wnids.txt; must be its parent directory, '
                f'which holds {FOLDER}/'
            )
        raise ConfigError(
            f'data_root={self.data_root!r} lacks {FOLDER}/wnids.txt; unpack {URL} there, so that '
            f'it holds {FOLDER}/'
        )

    def _check_counts(self, data_list: list[dict], wnids: list[str]) -> None:
        counts = Counter(info['gt_label'] for info in data_list)
        place = join_path(self.img_prefix, self.split)
        official = IMAGES_PER_CLASS[self.split]
        for label, wnid in enumerate(wnids):
            if counts[label] == 0:
                raise ConfigError(f'{place}: has no image of class {wnid}; {UNPACK_AGAIN}')
            if self.verify and counts[label] != official:
                raise ConfigError(
                    f'{place}: has {counts[label]} images of class {wnid}, must have {official}; '
                    f'{UNPACK_AGAIN}, or {ACCEPT}'
                )


def _read_wnids(root: str) -> list[str]:
    """Return the WordNet ids in the order of the class numbers."""
    path = join_path(root, 'wnids.txt')
    wnids = sorted(_read_table(path, num_columns=1))
    for wnid in wnids:
        # Ids become parts of paths.
        if not re.fullmatch(r'n\d{8}', wnid):
            raise ConfigError(f'{path}: holds {wnid!r}; must hold WordNet ids like n01443537')
    if len(wnids) != NUM_CLASSES:
        raise ConfigError(
            f'{path}: holds {len(wnids)} ids, must hold {NUM_CLASSES}; {UNPACK_AGAIN} '
            '(use subset for fewer classes)'
        )
    return wnids


def _read_names(root: str, wnids: list[str]) -> tuple[str, ...]:
    """Return the readable names of the classes."""
    path = join_path(root, 'words.txt')
    # The official file lists all of WordNet.
    rows = _read_table(path, num_columns=2)
    for wnid in wnids:
        if wnid not in rows:
            raise ConfigError(f'{path}: has no line for {wnid}; {UNPACK_AGAIN}')
    return tuple(rows[wnid][1] for wnid in wnids)


def _list_train(root: str, wnids: list[str]) -> list[dict]:
    """Return the training images, grouped by class."""
    data_list = []
    for label, wnid in enumerate(wnids):
        folder = join_path(root, 'train', wnid, 'images')
        names = [name for name in _list_images(folder) if name.startswith(f'{wnid}_')]
        # By number: _2 before _10.
        names.sort(key=lambda name: (len(name), name))
        data_list += [{'img_path': f'{folder}/{name}', 'gt_label': label} for name in names]
    return data_list


def _list_val(root: str, wnids: list[str]) -> list[dict]:
    """Return the validation images in the order of their annotations."""
    path = join_path(root, 'val', 'val_annotations.txt')
    folder = join_path(root, 'val', 'images')
    # One listing replaces a check of each file. It holds plain names only, so an annotation that
    # points outside the folder is not among them.
    present = set(_list_images(folder))
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    data_list = []
    for name, (_, wnid, *_) in _read_table(path, num_columns=2).items():
        if wnid not in label_of:
            raise ConfigError(
                f'{path}: gives {name!r} the class {wnid!r}, which is not in wnids.txt; '
                f'{UNPACK_AGAIN}'
            )
        if name not in present:
            raise ConfigError(
                f'{path}: names {name!r}, which is not among the {len(present)} images in '
                f'{folder}; {UNPACK_AGAIN}'
            )
        data_list.append({'img_path': f'{folder}/{name}', 'gt_label': label_of[wnid]})
    return data_list


def _list_images(folder: str) -> list[str]:
    """Return the names of the images in a folder, unordered."""
    try:
        return list(list_dir_or_file(folder, list_dir=False, suffix='.JPEG'))
    except OSError as error:
        raise ConfigError(
            f'{folder}: cannot be listed ({error.strerror or error}); {UNPACK_AGAIN}'
        ) from error


def _read_table(path: str, num_columns: int) -> dict[str, list[str]]:
    """Return the tab-separated columns of each line by the first column, which must be unique."""
    try:
        lines = get_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: cannot be read ({error}); {UNPACK_AGAIN}') from error
    rows = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = [column.strip() for column in line.split('\t')]
        if len(row) < num_columns:
            raise ConfigError(
                f'{path}: line {number} is {line!r}, must have {num_columns} or more columns, '
                f'separated by tabs; {UNPACK_AGAIN}'
            )
        if row[0] in rows:
            raise ConfigError(f'{path}: line {number} repeats {row[0]!r}; {UNPACK_AGAIN}')
        rows[row[0]] = row
    return rows
