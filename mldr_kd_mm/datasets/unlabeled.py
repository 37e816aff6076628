"""Images without labels: alone, or mixed with a labelled data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import ConcatDataset
from mmpretrain.datasets import BaseDataset
from mmpretrain.structures import DataSample

from mldr_kd_mm.datasets.folder import EXTENSIONS, FolderDataset, list_images, warn_of_unread
from mldr_kd_mm.datasets.view_sampler import ViewSampler
from mldr_kd_mm.registry import DATA_SAMPLERS, DATASETS
from mldr_kd_mm.structures.label import mark_unlabeled
from mldr_kd_mm.utils.errors import ConfigError, is_number
from mldr_kd_mm.utils.limits import MAX_LOG_BYTES, read_text


@DATASETS.register_module()
class UnlabeledFolder(FolderDataset):
    """Images without labels: all in and below a folder, or those that a text file lists.

    A :class:`~mldr_kd_mm.models.distillers.distiller.Distiller` compares its student with the
    teacher on them; the student's own loss leaves them out. Links to folders are followed.
    Hidden files and folders are skipped; other files without the extension of an image are counted
    in a warning. The pipeline starts with ``LoadImageFromFile``.

    Args:
        data_root: The folder. With ``ann_file`` it may be left out.
        ann_file: Text file with the path of an image on each line, relative to ``data_root``, or to
            the folder of the file without one. None: all images of the folder.
        **kwargs: ``pipeline``, ``metainfo`` (``dict(classes=...)``, the teacher's classes, which
            exported students state) and other arguments of mmpretrain's BaseDataset.

    Raises:
        ConfigError: There is no image, the file cannot be read, or it names a missing file.
    """

    def __init__(self, data_root: str = '', ann_file: str | None = None, **kwargs: Any) -> None:
        if not data_root and not ann_file:
            raise ConfigError(
                "data_root='': must be a folder of images, unless ann_file lists their paths"
            )
        self.list_file = ann_file and Path(ann_file).expanduser()
        super().__init__(data_root, 'train', **kwargs)

    def load_data_list(self) -> list[dict]:
        """Return ``{'img_path': str}`` for each image."""
        paths = self._read_list() if self.list_file else self._search()
        return [{'img_path': str(path)} for path in paths]

    def prepare_data(self, idx: int) -> Any:
        """Return the pipeline's result for one image; its ``data_samples`` is marked."""
        item = super().prepare_data(idx)
        sample = item.get('data_samples') if isinstance(item, dict) else None
        if isinstance(sample, DataSample):
            mark_unlabeled(sample)
        return item

    def get_gt_labels(self) -> np.ndarray:
        """Return no labels."""
        return np.empty(0, np.int64)

    def _search(self) -> list[Path]:
        others: list[Path] = []
        paths = list_images(Path(self.data_root), {}, others)
        warn_of_unread(Path(self.data_root), others)
        if not paths:
            raise ConfigError(
                f'data_root={self.data_root!r}: there are no images in or below it; must have '
                f'files that end in {", ".join(EXTENSIONS)}'
            )
        return paths

    def _read_list(self) -> list[Path]:
        field = f'ann_file={str(self.list_file)!r}'
        try:
            text = read_text(self.list_file, MAX_LOG_BYTES)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f'{field}: cannot be read ({error}); must be a text file with the path of an image '
                'on each line'
            ) from error
        folder = Path(self.data_root or self.list_file.parent)
        paths = []
        # Editors of Windows begin a file with a byte order mark.
        for number, line in enumerate(text.removeprefix('\ufeff').splitlines(), start=1):
            if not line.strip():
                continue
            path = folder / os.path.expanduser(line.strip())
            if not path.is_file():
                raise ConfigError(
                    f"{field}: line {number} names '{path}', which is no file; paths must be "
                    f"relative to '{folder}', or absolute"
                )
            if not path.name.lower().endswith(EXTENSIONS):
                raise ConfigError(
                    f"{field}: line {number} names '{path}', which is no image; must end in "
                    f'{", ".join(EXTENSIONS)}'
                )
            paths.append(path)
        if not paths:
            raise ConfigError(f'{field}: is empty; must have the path of an image on each line')
        return paths


@DATASETS.register_module()
class MixedDataset(ConcatDataset):
    """A labelled data set, followed by one without labels.

    A :class:`MixedSampler` draws both into each batch in a fixed ratio. With another sampler an
    epoch shows every image of both once.

    Args:
        labeled: Config of the labelled data set.
        unlabeled: Config of an :class:`UnlabeledFolder`.
        lazy_init: As in mmengine's ConcatDataset.

    Raises:
        ConfigError: ``unlabeled`` is not an UnlabeledFolder.
    """

    def __init__(
        self,
        labeled: dict | BaseDataset,
        unlabeled: dict | UnlabeledFolder,
        lazy_init: bool = False,
    ) -> None:
        # mmengine's own __init__ refuses parts whose metainfo differs.
        self.datasets = [
            part if isinstance(part, BaseDataset) else DATASETS.build(part)
            for part in (labeled, unlabeled)
        ]
        if not isinstance(self.datasets[1], UnlabeledFolder):
            raise ConfigError(
                f'unlabeled: is a {type(self.datasets[1]).__name__}; must be an UnlabeledFolder'
            )
        self._fully_initialized = False
        if not lazy_init:
            self.full_init()

    @property
    def metainfo(self) -> dict:
        """Metainfo of the labelled data set."""
        return self.datasets[0].metainfo

    def __getitem__(self, index: int) -> Any:
        """Return an item; its ``sample_idx`` is its position in this data set."""
        item = super().__getitem__(index)
        sample = item.get('data_samples') if isinstance(item, dict) else None
        if isinstance(sample, DataSample) and 'sample_idx' in sample:
            sample.set_field(int(index), 'sample_idx', field_type='metainfo')
        return item

    def get_gt_labels(self) -> np.ndarray:
        """Return the labels of the labelled images."""
        return self.datasets[0].get_gt_labels()


@DATA_SAMPLERS.register_module()
class MixedSampler(ViewSampler):
    """A ViewSampler that draws a fixed fraction of each batch from the unlabelled images.

    An epoch shows each labelled image once. The unlabelled images are taken in random order, which
    continues across epochs and is drawn anew when all have been shown. On every rank, any B
    consecutive images include ``unlabeled_ratio * B`` unlabelled ones, rounded up or down.

    Samples are a function of (seed, epoch, index), as those of the
    :class:`~mldr_kd_mm.datasets.view_sampler.ViewSampler`. The number of processes changes the
    order in which labelled and unlabelled images alternate.

    Args:
        dataset: A :class:`MixedDataset`.
        unlabeled_ratio: Fraction of unlabelled images in a batch, between 0 and 1.
        **kwargs: ``views`` of ViewSampler; ``shuffle``, ``seed`` and ``round_up`` of
            DefaultSampler.

    Raises:
        ConfigError: ``unlabeled_ratio`` is out of range, or the data set is not a MixedDataset.
    """

    def __init__(self, dataset: Any, unlabeled_ratio: float = 0.5, **kwargs: Any) -> None:
        check_ratio(unlabeled_ratio)
        if not isinstance(dataset, MixedDataset):
            raise ConfigError(
                f'sampler: MixedSampler needs a MixedDataset, dataset is a '
                f'{type(dataset).__name__}; use a ViewSampler, or mix the data sets'
            )
        super().__init__(dataset, **kwargs)
        self.unlabeled_ratio = unlabeled_ratio
        self.num_samples = mixed_length(len(self._of_rank(self._order(0, 0))), unlabeled_ratio)

    def _indices(self) -> Iterator[int]:
        labeled, unlabeled = (len(part) for part in self.dataset.datasets)
        own = iter(self._of_rank(self._order(0, self.epoch)))
        place = self.epoch * _part(mixed_length(labeled, self.unlabeled_ratio), self._ratio)
        place += self.rank
        orders: dict[int, np.ndarray] = {}
        for position in range(self.num_samples):
            if _part(position + 1, self._ratio) == _part(position, self._ratio):
                yield int(next(own))
                continue
            number, rest = divmod(place, unlabeled)
            if number not in orders:
                orders = {number: self._order(1, number)}
            yield labeled + int(orders[number][rest])
            place += self.world_size

    @property
    def _ratio(self) -> Fraction:
        return _fraction(self.unlabeled_ratio)

    def _order(self, part: int, number: int) -> np.ndarray:
        """Return the indices of a part of the data set, in their order of a pass over it."""
        size = len(self.dataset.datasets[part])
        if not self.shuffle:
            return np.arange(size)
        return np.random.default_rng((self.seed, number, part)).permutation(size)

    def _of_rank(self, order: np.ndarray) -> np.ndarray:
        """Return the indices of this rank, as DefaultSampler shares them out."""
        count = -(-len(order) // self.world_size) * self.world_size
        order = np.resize(order, count) if self.round_up else order
        return order[self.rank :: self.world_size]


def check_ratio(ratio: float) -> None:
    """Check the fraction of unlabelled images in a batch.

    Raises:
        ConfigError: It is not a number between 0 and 1.
    """
    if not is_number(ratio) or not 0 < ratio < 1 or not 0 < _fraction(ratio) < 1:
        raise ConfigError(
            f'unlabeled_ratio={ratio!r}: must be a number between 0 and 1, the fraction of '
            'unlabelled images in a batch'
        )


def mixed_length(labeled: int, ratio: float) -> int:
    """Return how many images an epoch of a :class:`MixedSampler` shows on one process.

    Args:
        labeled: Number of labelled images.
        ratio: Fraction of unlabelled images in a batch.
    """
    return int(labeled / (1 - _fraction(ratio)))


def _fraction(ratio: float) -> Fraction:
    """Return the ratio as an exact number, so that each batch gets exactly that many images."""
    return Fraction(ratio).limit_denominator(10_000)


def _part(count: int, ratio: Fraction) -> int:
    return int(count * ratio)
