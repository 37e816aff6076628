"""The samples that a data set consists of: its parts, their identities and their files."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


def iter_parts(dataset: Any) -> Iterator[Any]:
    """Yield the innermost data sets, without wrappers such as RepeatDataset and MixedDataset.

    Args:
        dataset: A data set, or a wrapper with ``dataset`` or a list ``datasets``.
    """
    inner = _inner(dataset)
    if not inner:
        yield dataset
    for part in inner:
        yield from iter_parts(part)


def hash_samples(dataset: Any) -> str | None:
    """Return a hash that changes if samples are replaced by others, or listed in another order.

    A sample is identified by its path in the folder that its part of the data set has in common,
    so the folder may be moved, or by its pixels if it is no file.

    Args:
        dataset: The data set.

    Returns:
        16 hexadecimal digits; None if a sample has neither ``img_path`` nor ``img``.
    """
    state = hashlib.sha256()
    return state.hexdigest()[:16] if _hash(dataset, state.update) else None


def real_paths(dataset: Any) -> set[str]:
    """Return the paths of a data set's image files, with links to files and folders resolved.

    Args:
        dataset: A data set whose samples have ``img_path``.
    """
    # One listing of a folder instead of a call for each file.
    links, resolve = functools.cache(_links_in), functools.cache(os.path.realpath)
    paths = set()
    for info in _infos(dataset):
        folder, _, name = info['img_path'].rpartition('/')
        is_link = name in links(folder)
        paths.add(os.path.realpath(info['img_path']) if is_link else f'{resolve(folder)}/{name}')
    return paths


def has_links(folder: str) -> bool:
    """Return whether there is a link to a file or folder in or below a folder.

    Args:
        folder: The folder.
    """
    return any(_links_in(place) for place, _, _ in os.walk(folder))


def _inner(dataset: Any) -> list[Any]:
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    return [part for part in inner if part is not None] if isinstance(inner, (list, tuple)) else []


def _infos(dataset: Any) -> Iterator[dict[str, Any]]:
    return map(dataset.get_data_info, range(len(dataset)))


def _hash(dataset: Any, update: Callable[[bytes], None]) -> bool:
    """Hash the samples; return whether all of them are identified."""
    chosen = getattr(dataset, 'indices', None)  # of torch's Subset
    update(f'{len(dataset)} {chosen if chosen is None else [*map(int, chosen)]}\n'.encode())
    if inner := _inner(dataset):
        return all([_hash(part, update) for part in inner])
    if not hasattr(dataset, 'get_data_info'):
        return False
    paths = []
    for info in _infos(dataset):
        path, image = info.get('img_path'), info.get('img')
        if path is not None:
            paths.append(os.fspath(path))
        elif isinstance(image, np.ndarray):
            update(f'{image.dtype}{image.shape}'.encode())
            update(np.ascontiguousarray(image))
        else:
            return False
    start = len(os.path.commonprefix(paths).rpartition('/')[0])
    update(os.fsencode('\0'.join(path[start:] for path in paths)))
    return True


def _links_in(folder: str) -> set[str]:
    """Return the names of the links in a folder."""
    try:
        with os.scandir(folder or '.') as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:  # in remote storage
        return set()
