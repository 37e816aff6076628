"""scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmpretrain.datasets import BaseDataset

from mldr_kd_mm.datasets.subset import take_subset
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError, check_choice, check_positive

NUM_TRAIN = 1200
BRIGHTEST = 16  # largest value of the original images


@DATASETS.register_module()
class Digits(BaseDataset):
    """The 1,797 handwritten digits of :func:`sklearn.datasets.load_digits`, 10 classes.

    A fixed, stratified split has 1,200 training and 597 test images. The originals are grey and
    8 px wide; they are enlarged bilinearly and converted to RGB.

    The pipeline receives a dict with ``img``, uint8 (size, size, 3), and ``gt_label``.

    Args:
        split: ``'train'`` or ``'test'``.
        size: Height and width in pixels.
        subset: None for the whole split, or ``dict(labels=[...], per_class=N)``, see
            :func:`~mldr_kd_mm.datasets.subset.take_subset`.
        **kwargs: ``pipeline`` and other arguments of mmpretrain's BaseDataset.

    Raises:
        ConfigError: Unknown ``split``, ``size`` below 1, ``subset`` asks for images that do not
            exist, or scikit-learn is not installed.
    """

    METAINFO = {'classes': tuple('0123456789')}

    def __init__(
        self,
        split: str = 'train',
        size: int = 32,
        subset: dict | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice(('train', 'test'), split=split)
        check_positive(size=size)
        self.split = split
        self.size = size
        self.subset = subset
        # Serialisation saves memory only for large data sets, and mmengine runs the garbage
        # collector for it.
        kwargs.setdefault('serialize_data', False)
        super().__init__(ann_file='', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``{'img': uint8 (size, size, 3), 'gt_label': int}`` for each image."""
        images, labels = _read(_find_file())
        chosen = _is_training(labels) == (self.split == 'train')
        data_list = [
            {'img': self._enlarge(image.reshape(8, 8)), 'gt_label': int(label)}
            for image, label in zip(images[chosen], labels[chosen], strict=True)
        ]
        data_list, self._metainfo['classes'] = take_subset(data_list, self.CLASSES, self.subset)
        return data_list

    def _enlarge(self, image: np.ndarray) -> np.ndarray:
        grey = mmcv.imresize(image * (255 / BRIGHTEST), (self.size, self.size))
        return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds."""
        return [f'Split: \t{self.split}', f'Image size: \t{self.size}']


def _find_file() -> Path:
    """Return scikit-learn's file of the digits; importing scikit-learn would take 1.4 s."""
    spec = find_spec('sklearn')
    file = spec and Path(spec.origin).parent / 'datasets/data/digits.csv.gz'
    if not file or not file.is_file():
        raise ConfigError(
            'Digits needs scikit-learn, which is not installed; run pip install scikit-learn'
        )
    return file


@cache
def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 64), 0 to 16, and the labels (N,)."""
    table = np.loadtxt(file, delimiter=',')
    return table[:, :-1], table[:, -1].astype(int)


def _is_training(labels: np.ndarray) -> np.ndarray:
    """Return which images belong to the training split, (N,) -> bool (N,)."""
    # Neighbours in the file come from one writer. Shuffling, sorting by class and taking images at
    # equal steps gives both splits all writers and classes. RandomState's numbers are the same in
    # every version of NumPy.
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind='stable')]
    steps = np.arange(len(labels) + 1) * NUM_TRAIN // len(labels)
    training = np.zeros(len(labels), dtype=bool)
    training[order] = np.diff(steps) == 1
    return training
