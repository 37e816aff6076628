"""Views: what one sample looks like in one epoch, and the random numbers that make it so."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
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


def get_views(data_samples: Sequence[DataSample] | None) -> list[View] | None:
    """The views of a batch, or None if it was drawn otherwise."""
    views = [getattr(sample, 'view', None) for sample in data_samples or ()]
    return views if views and None not in views else None


def hash_views(views: Sequence[View]) -> int:
    """A number of 32 bits for a batch: that of its views and their order."""
    return zlib.crc32(np.array(views, np.int64).tobytes())
