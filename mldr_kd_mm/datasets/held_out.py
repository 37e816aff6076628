"""Two parts of a data set, of which one is held out to choose hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import ConfigError


def split_by_class(
    labels: Sequence[int], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Split samples at random so that both parts have the same share of each class.

    Args:
        labels: Class of each sample.
        fraction: Fraction of each class to hold out, rounded to whole samples.
        seed: Seed of the random choice.

    Returns:
        Sorted indices of the samples that stay, and of those that are held out.

    Raises:
        ConfigError: ``fraction`` is not between 0 and 1, or one of the parts has no sample of a
            class.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f'held_out={fraction!r}: must be between 0 and 1')
    labels = np.asarray(labels)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = round(fraction * len(places))
        if count in (0, len(places)):
            part = 'held-out' if count == 0 else 'training'
            raise ConfigError(
                f'held_out={fraction!r}: class {label} has {len(places)} images, which leaves its '
                f'{part} part empty; use {"a larger" if count == 0 else "a smaller"} fraction, or '
                'more images'
            )
        chosen[np.random.default_rng([seed, label]).permutation(places)[:count]] = True
    return np.flatnonzero(~chosen).tolist(), np.flatnonzero(chosen).tolist()


@DATASETS.register_module(name='HeldOutPart')
def held_out_part(dataset: dict, fraction: float, seed: int = 0, held_out: bool = False) -> Any:
    """Build one of the two parts of a data set; see :func:`split_by_class`.

    Args:
        dataset: Config of the data set, one of mmengine's ``BaseDataset`` with ``gt_label``.
        fraction: Fraction of each class to hold out.
        seed: Seed of the random choice.
        held_out: Whether to return the part that is held out, or the rest.

    Raises:
        ConfigError: The data set cannot be split.
    """
    built = DATASETS.build(dataset)
    if not all(hasattr(built, name) for name in ('get_subset_', 'get_gt_labels', 'full_init')):
        raise ConfigError(
            f'held_out: a {type(built).__name__} cannot be split; must be a data set with '
            'get_gt_labels() and get_subset_(), such as those of mmpretrain'
        )
    built.full_init()
    built.get_subset_(split_by_class(built.get_gt_labels(), fraction, seed)[held_out])
    return built
