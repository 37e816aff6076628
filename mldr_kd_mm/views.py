"""Views: what one sample looks like in one epoch, and the random numbers that make it so."""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from mmpretrain.structures import DataSample


class View(NamedTuple):
    """Names a view: the augmented sample is a function of these three and of nothing else."""

    seed: int
    """The sampler's seed, which is the run's."""
    epoch: int
    """The number of the epoch."""
    index: int
    """The sample's place in the data set."""


class ViewIndex(int):
    """An index of a data set that knows its :class:`View`; it survives pickling."""

    view: View

    def __new__(cls, view: View) -> ViewIndex:
        index = super().__new__(cls, view.index)
        index.view = view
        return index

    def __getnewargs__(self) -> tuple[View]:
        return (self.view,)


@contextmanager
def global_rng_kept() -> Iterator[None]:
    """Put the generators of Python, NumPy and torch (CPU) back to where they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_global_rng(*key: int) -> None:
    """Start the generators of Python, NumPy and torch (CPU) from a hash of some numbers."""
    hashed = hashlib.blake2b(np.array(key, np.int64).tobytes()).digest()
    random.seed(int.from_bytes(hashed[:8], 'little'))
    np.random.seed(int.from_bytes(hashed[8:12], 'little'))
    # torch.manual_seed would also seed the GPU, which draws the student's dropout.
    torch.default_generator.manual_seed(int.from_bytes(hashed[12:20], 'little'))


def draw_by_view(dataset: Any) -> None:
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
    with global_rng_kept():
        return [_item(dataset, index.view) for index in indices]


def _item(dataset: Any, view: View) -> Any:
    seed_global_rng(*view)
    item = dataset[view.index]
    sample = item.get('data_samples') if isinstance(item, dict) else None
    if isinstance(sample, DataSample):
        sample.set_field(view, 'view', field_type='metainfo')
    return item


def views_of(data_samples: Sequence[DataSample] | None) -> list[View] | None:
    """The views of a batch, or None if it was drawn otherwise."""
    views = [getattr(sample, 'view', None) for sample in data_samples or ()]
    return views if views and None not in views else None


def digest(views: Sequence[View]) -> int:
    """A number of 32 bits for a batch: that of its views and their order."""
    return zlib.crc32(np.array(views, np.int64).tobytes())
