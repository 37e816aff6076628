"""A sampler that makes each augmented sample reproducible."""

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
    """mmengine's DefaultSampler, under which a sample is a function of (seed, epoch, index).

    Whatever the number of workers, the batch size, the number of processes, and wherever a run was
    resumed, an epoch shows the same images, in DefaultSampler's order. The pipeline is seeded for
    each sample and the global random state is left as it was.

    Args:
        dataset: The data set.
        views: None, or the number of epochs after which the images repeat: epoch ``e`` is epoch
            ``e mod views`` again, order and all. A teacher cache needs it.
        **kwargs: ``shuffle``, ``seed`` and ``round_up``, as DefaultSampler has them.

    Raises:
        ConfigError: If ``views`` is below 1.
    """

    def __init__(self, dataset: Any, views: int | None = None, **kwargs: Any) -> None:
        if views is not None:
            check_positive(views=views)
        super().__init__(dataset, **kwargs)
        self.views = views
        self._start = 0
        seed_by_view(dataset)

    def __iter__(self) -> Iterator[ViewIndex]:
        """Iterate over the indices of this process."""
        start, self._start = self._start, 0
        for index in islice(super().__iter__(), start, None):
            yield ViewIndex(View(self.seed, self.epoch, index))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is iterated over next."""
        super().set_epoch(epoch if self.views is None else epoch % self.views)

    def start_at(self, position: int) -> None:
        """Leave out the first samples of this process, the next time that it is iterated over.

        Args:
            position: How many.
        """
        self._start = position


def seed_by_view(dataset: Any) -> None:
    """Let a data set draw what a data loader asks for by :class:`ViewIndex` seeded.

    The whole of ``dataset[index]`` is seeded: the pipeline, what wrappers around the data set draw,
    and the choice of another sample where one cannot be read. The ``data_samples`` of an item then
    have a ``view``. Batches asked for by plain numbers stay as they are.
    """
    # DataLoader asks for the items of a batch by this method, if there is one.
    dataset.__getitems__ = partial(_items, dataset)


def _items(dataset: Any, indices: Sequence[int]) -> list:
    if not isinstance(indices[0], ViewIndex):
        return [dataset[index] for index in indices]
    with preserve_global_rng():
        return [_item(dataset, index.view) for index in indices]


def _item(dataset: Any, view: View) -> Any:
    seed_global_rng(*view)
    item = dataset[view.index]
    sample = item.get('data_samples') if isinstance(item, dict) else None
    if isinstance(sample, DataSample):
        sample.set_field(view, 'view', field_type='metainfo')
    return item
