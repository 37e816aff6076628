"""Image files, found and prepared for a student as in its validation."""

from __future__ import annotations

import functools
import glob
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor

from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.run_record import dicts, type_name
from mldr_kd_mm.datasets.folder import EXTENSIONS, FolderDataset, list_images, unread_files
from mldr_kd_mm.datasets.image_folder import ImageFolder
from mldr_kd_mm.datasets.samples import iter_parts, real_paths
from mldr_kd_mm.evaluation.logged_run import LoggedRun
from mldr_kd_mm.utils.errors import ConfigError, MissingFileError, describe, named
from mldr_kd_mm.utils.limits import MAX_PIXELS
from mldr_kd_mm.utils.stored_config import check_types, default_scope, registered_names_only

_LOAD = dict(type='LoadImageFromFile')
_PACKING = ('PackInputs', 'PackPlanes')


def find_images(images: str | Path | Sequence[str | Path]) -> list[str]:
    """Return the paths of images, each once, however its folder is written or linked.

    A warning counts the files of folders that are not read.

    Args:
        images: Files, folders, which are searched recursively for files with the suffix of an
            image, and patterns such as ``'photos/*.jpg'`` or ``'photos/**/*.jpg'``. Hidden files
            are only found if they are named.

    Raises:
        MissingFileError: A path does not exist, or no file matches a pattern.
        ConfigError: There are no images, or a folder cannot be listed.
    """
    given = [images] if isinstance(images, (str, Path)) else list(images)
    resolve = functools.cache(os.path.realpath)

    def real(path: str) -> str:
        # A link to a file has its own name, so it is an image of its own.
        folder, name = os.path.split(path)
        return os.path.join(resolve(folder), name)

    found: dict[str, str] = {}
    unread: dict[str, Path] = {}
    folders: list[str] = []
    searched: dict[str, Any] = {}
    for path in (path for each in given for path in _expand(os.fspath(each))):
        if not os.path.isdir(path):
            found.setdefault(real(path), path)
        elif resolve(path) not in searched:
            owners, others = {}, []
            for image in map(str, list_images(Path(path), owners, others, 'images')):
                found.setdefault(real(image), image)
            unread.update((real(str(other)), other) for other in others)
            searched.update(owners)
            folders.append(path)
    if others := [path for name, path in unread.items() if name not in found]:
        print_log(unread_files(others, 'images', folders), 'current', logging.WARNING)
    if not found:
        places = ', '.join(repr(os.fspath(each)) for each in given)
        raise ConfigError(
            f'images={places}: there are no images; files must end in {", ".join(EXTENSIONS)}'
        )
    return list(found.values())


def _expand(given: str) -> list[str]:
    """Return the path, or the paths that match a pattern."""
    path = os.path.expanduser(given)
    if os.path.exists(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        problem = 'matches no file' if glob.has_magic(path) else 'there is no such file or folder'
        raise MissingFileError(f'images={given!r}: {problem}')
    return matches


def steps_for_files(pipeline: Any, input_size: Sequence[int]) -> list[Any]:
    """Return the steps of a validation for image files, also if its data set has arrays.

    Args:
        pipeline: Its pipeline; without other steps than loading, images are resized.
        input_size: (3, H, W) of the student's images.
    """
    steps = dicts(pipeline)
    load = next((step for step in steps if type_name(step) == _LOAD['type']), _LOAD)
    left_out = (_LOAD['type'], *_PACKING)
    others = [step for step in steps if type_name(step) not in left_out]
    if not others:
        height, width = input_size[1:]
        others = [dict(type='Resize', scale=(width, height), backend='pillow')]
    return [load, *others, dict(type='PackInputs')]


def seen_in_training(
    run: Mapping[str, Any], checkpoint: Path, dataset: ImageFolder
) -> tuple[set[str], str]:
    """Return which images of a folder a run has trained on.

    Args:
        run: The run's config.
        checkpoint: Path of its checkpoint.
        dataset: The folder.

    Returns:
        Their paths, and why some training images are unknown; empty if all are known.
    """
    field, paths, unknown = 'train_dataloader.dataset', set(), ''
    # The run may have been started in another directory, often one above the checkpoint.
    places = [Path.cwd(), *checkpoint.resolve().parents]
    try:
        with named(field):
            config = Config(_with_found_folders(dict(run), places))
            train = LoggedRun('', Path(), config, []).build_dataset('train_dataloader')
            for part in iter_parts(train):
                if 'img_path' in part.get_data_info(0):
                    paths |= real_paths(part)
                else:
                    unknown = f'{field}: {type(part).__name__} does not read image files'
    except ConfigError as error:
        unknown = str(error)
    return real_paths(dataset) & paths, unknown


def _with_found_folders(config: Any, places: Sequence[Path]) -> Any:
    """Return a copy of a config of data sets whose relative paths are below the first place."""
    if isinstance(config, (list, tuple)):
        return [_with_found_folders(each, places) for each in config]
    if not isinstance(config, Mapping):
        return config
    copy = {name: _with_found_folders(value, places) for name, value in config.items()}
    # The others are relative to the first.
    names = (name for name in ('data_root', 'ann_file', 'data_prefix') if copy.get(name))
    name = next(names, None)
    if isinstance(copy.get(name), str):
        path = Path(copy[name]).expanduser()
        found = (str(place / path) for place in places if (place / path).exists())
        copy[name] = next(found, copy[name])
    return copy


class StudentImages(FolderDataset):
    """Image files, prepared for a student.

    Args:
        paths: Paths of the files.
        description: Description of the student. For ``input='uint8'`` an image is only decoded.

    Raises:
        ConfigError: The description names a step of the validation that is not registered.
    """

    def __init__(self, paths: Sequence[str], description: StudentDescription) -> None:
        self._paths = paths
        self._description = description
        scope = default_scope(dict(default_scope=description.default_scope))
        with (
            DefaultScope.overwrite_default_scope(scope),
            named('pipeline'),
            registered_names_only(),
        ):
            super().__init__('', pipeline=check_types(self._steps(), 'pipeline'))

    def load_data_list(self) -> list[dict]:
        """Return ``{'img_path': str}`` for each image."""
        return [{'img_path': path} for path in self._paths]

    def read(self, index: int) -> Tensor | ConfigError:
        """Read an image.

        Args:
            index: Its number.

        Returns:
            (3, H, W) before the normalisation, (height, width, 3) of RGB for ``input='uint8'``, or
            the error of a file that cannot be used.
        """
        try:
            results = self.prepare_data(index)
        except ConfigError as error:
            return error
        except Exception as error:  # of a step that does not take an image of this shape
            return ConfigError(f'{self._paths[index]}: {describe(error)}')
        if self._is_raw:
            return torch.from_numpy(results['img'][..., ::-1].copy())
        image, expected = results['inputs'], tuple(self._description.input_size)
        if tuple(image.shape) != expected:
            return ConfigError(
                f'{self._paths[index]}: becomes {tuple(image.shape)} by the steps of the '
                f'validation; must become {expected}'
            )
        return image

    def normalise(self, images: Tensor) -> Tensor:
        """Return the input of the network for a batch of images.

        Args:
            images: (N, 3, H, W), as :meth:`read` returns them, in the order BGR.
        """
        if self._is_raw:
            return images
        images = images.float()
        if self._description.channel_order != 'BGR':
            images = images.flip(1)
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (self._description.mean, self._description.std)
        )
        return (images - mean) / std

    @property
    def _is_raw(self) -> bool:
        return self._description.input == 'uint8'

    def _steps(self) -> list[Any]:
        description = self._description
        load, *others = steps_for_files(description.pipeline, description.input_size)
        return [load, self._check_shape, *([] if self._is_raw else others)]

    def _check_shape(self, results: dict[str, Any]) -> dict[str, Any]:
        """Refuse an elongated image that resizing by its short edge would make huge."""
        resize = self._description.resize
        if resize and resize.get('crop_mode') == 'center':
            height, width = results['img'].shape[:2]
            pixels = max(resize['scale']) ** 2 * max(height, width) // min(height, width)
            if pixels > MAX_PIXELS:
                raise ConfigError(
                    f'{results["img_path"]}: resized by its short edge it would have {pixels} '
                    f'pixels, must have at most {MAX_PIXELS}; crop it'
                )
        return results
