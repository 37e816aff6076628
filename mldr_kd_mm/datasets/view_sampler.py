"""Sampler that makes augmented samples reproducible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from mmengine.dataset import DefaultSampler
from mmpretrain.structures import DataSample

from mldr_kd_mm.registry import DATA_SAMPLERS
from mldr_kd_mm.structures.view import View, ViewIndex
from mldr_kd_mm.utils.errors import check_positive
from mldr_kd_mm.utils.random import preserve_global_rng, seed_global_rng


@DATA_SAMPLERS.register_module()
class ViewSampler(DefaultSampler):
    """mmengine's DefaultSampler with augmented samples that depend on (seed, epoch, index) alone.

    An epoch shows the same images in DefaultSampler's order, regardless of the number of workers,
    the batch size, the number of processes and the point at which a run was resumed. The pipeline
    is seeded for each sample, and the global random state is left unchanged.

    Args:
        dataset: The data set.
        views: Number of epochs after which the images repeat: epoch ``e`` shows the images of
            epoch ``e mod views`` in the same order. A teacher cache requires it. None: never.
        **kwargs: ``shuffle``, ``seed`` and ``round_up`` of DefaultSampler.

    Raises:
        ConfigError: ``views`` is below 1.
    """

    def __init__(self, dataset: Any, views: int | None = None, **kwargs: Any) -> None:
        if views is not None:
            check_positive(views=views)
        super().__init__(dataset, **kwargs)
        self.views = views
        self._start = 0
        seed_by_view(dataset)

    def __iter__(self) -> Iterator[ViewIndex]:
        """Iterate over the indices of this rank."""
        start, self._start = self._start, 0
        for index in islice(self._indices(), start, None):
            yield ViewIndex(View(self.seed, self.epoch, index))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        super().set_epoch(epoch if self.views is None else epoch % self.views)

    def start_at(self, position: int) -> None:
        """Skip the first samples of this rank in the next iteration only.

        Args:
            position: Number of samples to skip.
        """
        self._start = position

    def _indices(self) -> Iterator[int]:
        """Return the indices of this rank in the epoch."""
        return super().__iter__()


def seed_by_view(dataset: Any) -> None:
    """Seed the items of a data set by their view.

    The seed covers all of ``dataset[index]``: the pipeline, wrappers around the data set, and the
    choice of another sample if one cannot be read. The ``data_samples`` of such an item have a
    ``view``. Only batches requested by :class:`ViewIndex`, as a ViewSampler does, are affected.

    Args:
        dataset: The data set; it is changed in place.
    """
    # DataLoader calls this method, if there is one, to get the items of a batch.
    dataset.__getitems__ = partial(_get_items, dataset)


def _get_items(dataset: Any, indices: Sequence[int]) -> list:
    if not isinstance(indices[0], ViewIndex):
        return [dataset[index] for index in indices]
    with preserve_global_rng():
        return [_get_item(dataset, index.view) for index in indices]


def _get_item(dataset: Any, view: View) -> Any:
    seed_global_rng(*view)
    item = dataset[view.index]
    sample = item.get('data_samples') if isinstance(item, dict) else None
    if isinstance(sample, DataSample):
        sample.set_field(view, 'view', field_type='metainfo')
    return item
