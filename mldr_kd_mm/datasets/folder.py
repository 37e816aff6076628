"""Base class of data sets whose images are files."""

from __future__ import annotations

import os
from typing import Any

from mmcv import imfrombytes
from mmengine.fileio import get
from mmpretrain.datasets import BaseDataset

from mldr_kd_mm.utils.errors import ConfigError, check_choice


class FolderDataset(BaseDataset):
    """Data set of image files with a training and a validation split.

    A subclass implements ``load_data_list``, which returns a dict with ``img_path`` and
    ``gt_label`` for each image and may set ``self._metainfo['classes']``. A pipeline starts with
    ``LoadImageFromFile``. The error for a file that cannot be read names the file.

    Args:
        data_root: Folder of the data set.
        split: ``'train'`` or ``'val'``.
        **kwargs: ``pipeline`` and other arguments of mmpretrain's BaseDataset.

    Raises:
        ConfigError: Unknown ``split``.
    """

    REMEDY = 'replace or remove it'
    """What to do about a file that cannot be read, for the error message."""

    def __init__(self, data_root: str, split: str = 'train', **kwargs: Any) -> None:
        check_choice(('train', 'val'), split=split)
        self.split = split
        super().__init__(ann_file='', data_root=os.path.expanduser(data_root), **kwargs)

    def prepare_data(self, idx: int) -> Any:
        """Return the pipeline's result for one image.

        Raises:
            ConfigError: The file is not a complete image, or has more pixels than OpenCV accepts.
        """
        try:
            return super().prepare_data(idx)
        except Exception:
            # Any step may have failed, so read the image again to find out if it is the cause.
            _check_image(self.get_data_info(idx)['img_path'], self.REMEDY)
            raise

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds."""
        return [f'Root of dataset: \t{self.data_root}', f'Split: \t{self.split}']


def _check_image(path: str, remedy: str) -> None:
    try:
        reason = 'it is damaged' if imfrombytes(get(path)) is None else None
    except Exception as error:  # raised by OpenCV or the file backend
        reason = str(error).strip().splitlines()[0]
    if reason:
        raise ConfigError(f'{path}: cannot be read as an image ({reason}); {remedy}')
