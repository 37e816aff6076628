"""Training and validation images of a folder: which folders hold them, or which are held out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mldr_kd_mm.datasets.folder import EXTENSIONS
from mldr_kd_mm.utils.errors import ConfigError

TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'valid', 'validation', 'dev', 'eval', 'evaluation')
TEST_NAMES = ('test', 'testing')

_SPLIT_NAMES = (*TRAIN_NAMES, *VAL_NAMES, *TEST_NAMES)
_SPLIT_WORDS = ('train', 'val', 'dev', 'test')


class SplitFolders(NamedTuple):
    """Folders of the two splits.

    Attributes:
        train: Folder of the classes with the training images; None if there is only ``val``.
        val: Folder of the classes with the validation images; None if a part of ``train`` is held
            out.
        unused: Names of the other folders beside them, such as ``test``.
    """

    train: Path | None
    val: Path | None
    unused: tuple[str, ...] = ()


def find_split_folders(root: Path) -> SplitFolders:
    """Find the folders of the splits by their names, in any case.

    A folder with the name of a split is a split if it holds folders; otherwise it is a class.

    Args:
        root: Folder of the data.

    Raises:
        ConfigError: There is no such folder, or it is not clear which of its folders to use.
    """
    if not root.is_dir():
        raise ConfigError(
            f"data_root='{root}': there is no such folder; must be one with train/ and val/, or "
            'with a folder of images for each class'
        )
    folders = visible_folders(root)
    named = [folder for folder in folders if folder.name.lower() in _SPLIT_NAMES]
    splits = [folder for folder in named if visible_folders(folder)]
    if not splits:
        if named and len(named) == len(folders):
            raise ConfigError(
                f"data_root='{root}': {_names(named)} must hold a folder of images for each class"
            )
        return SplitFolders(root, None)
    flat = [folder for folder in named if folder not in splits and _has_images(folder)]
    unlabelled = [folder for folder in flat if folder.name.lower() in TEST_NAMES]
    train = _only(root, splits, TRAIN_NAMES)
    # The best epoch is chosen by the validation, so a test set is the last resort.
    val = _only(root, splits, VAL_NAMES) or _only(root, splits, TEST_NAMES)
    others = [folder for folder in folders if folder not in (train, val)]
    if train is None:
        return SplitFolders(None, val, tuple(folder.name for folder in others))
    if flat != unlabelled:
        raise ConfigError(
            f"data_root='{root}': {_names([each for each in flat if each not in unlabelled])} must "
            f'hold a folder of images for each class, as {_names(splits)} does; if it is a class, '
            f'move all classes into {train.name}/'
        )
    classes = [folder for folder in others if folder not in named and _has_images(folder)]
    if classes and val is None:
        raise ConfigError(
            f"data_root='{root}': {_names([train])} holds folders, as a split does, and "
            f'{_names(classes)} images, as a class does; move the classes into {train.name}/, or '
            f'the folders out of it'
        )
    return SplitFolders(train, val, tuple(folder.name for folder in others))


def skip_wrappers(folder: Path) -> Path:
    """Return the folder of the data in an unpacked archive, which often holds a single folder.

    Args:
        folder: The unpacked archive.
    """
    while len(folders := visible_folders(folder)) == 1:
        (inner,) = folders
        if inner.name.lower() in _SPLIT_NAMES or not visible_folders(inner):
            break
        folder = inner
    return folder


def visible_folders(folder: Path) -> list[Path]:
    """Return the sorted folders in a folder, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith('.'))


def check_not_splits(folder: Path, sub_folders: Mapping[str, set[str]]) -> str | None:
    """Look for classes that are splits, or that have splits inside.

    Args:
        folder: Folder of the classes.
        sub_folders: Class -> names of the folders in it.

    Returns:
        A warning if all classes have the same folders, None otherwise.

    Raises:
        ConfigError: Names say that the folders are splits.
    """
    shared = sorted(set.intersection(*sub_folders.values()))
    if len(shared) < 2:
        return None
    classes = ', '.join(map(repr, list(sub_folders)[:4]))
    found = f"data_root: in '{folder}', {classes} all hold {', '.join(map(repr, shared[:4]))}"
    if any(name.lower() in _SPLIT_NAMES for name in shared):
        raise ConfigError(f'{found}; must be train/CLASS/ and val/CLASS/, not CLASS/train/')
    if all(any(word in name.lower() for word in _SPLIT_WORDS) for name in sub_folders):
        raise ConfigError(f'{found}; rename the folders of the splits to train and val')
    return f'{found}; if these are the classes, put them into train/ and val/'


def hold_out(names: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Choose the images of a class that are held out, each by a hash of its own name.

    The choice for an image depends on no other image, so it stays when images are added. Only a
    class of a few images depends on the others: it has at least one image in each part.

    Args:
        names: Two or more names.
        fraction: The expected fraction to hold out.
        seed: Another seed chooses other images.
    """
    draws = {name: _draw(name, seed) for name in names}
    chosen = {name for name in names if draws[name] < fraction}
    if not chosen:
        return {min(draws, key=draws.get)}
    return chosen if len(chosen) < len(draws) else chosen - {max(draws, key=draws.get)}


def _draw(name: str, seed: int) -> float:
    """Return a number between 0 and 1 that depends on the arguments alone."""
    digest = hashlib.sha256(f'{seed}/'.encode() + os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], 'big') / 2**64


def _only(root: Path, folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    found = [folder for folder in folders if folder.name.lower() in names]
    if len(found) > 1:
        raise ConfigError(f"data_root='{root}': has {_names(found)}; must have only one of them")
    return found[0] if found else None


def _names(folders: Sequence[Path]) -> str:
    return ' and '.join(repr(folder.name) for folder in folders[:4])


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in EXTENSIONS for path in folder.iterdir())
