"""A view: one augmentation of one sample."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from mmpretrain.structures import DataSample


class View(NamedTuple):
    """Identity of an augmented sample, which depends on these three numbers alone.

    Attributes:
        seed: Seed of the sampler, which is the run's seed.
        epoch: Number of the epoch.
        index: Position of the sample in the data set.
    """

    seed: int
    epoch: int
    index: int


class ViewIndex(int):
    """Index into a data set that carries its :class:`View`, also through pickling."""

    view: View

    def __new__(cls, view: View) -> ViewIndex:
        index = super().__new__(cls, view.index)
        index.view = view
        return index

    def __getnewargs__(self) -> tuple[View]:
        return (self.view,)


def get_views(data_samples: Sequence[DataSample] | None) -> list[View] | None:
    """Return the views of a batch, or None if it does not come from a ViewSampler."""
    views = [getattr(sample, 'view', None) for sample in data_samples or ()]
    return views if views and None not in views else None


def hash_views(views: Sequence[View]) -> int:
    """Return a 32-bit hash of the views of a batch and their order."""
    return zlib.crc32(np.array(views, np.int64).tobytes())
