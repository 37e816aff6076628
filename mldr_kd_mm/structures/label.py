"""Samples whose images have no label, by intention."""

from __future__ import annotations

from collections.abc import Sequence

from mmpretrain.structures import DataSample

_FIELD = 'is_unlabeled'


def mark_unlabeled(sample: DataSample) -> None:
    """Mark a sample as one without a label.

    Without the mark, a missing label is an error: the data set or the pipeline has lost it.

    Args:
        sample: The sample; it is changed in place.
    """
    sample.set_field(True, _FIELD, field_type='metainfo')


def is_unlabeled(sample: DataSample) -> bool:
    """Return whether a sample is marked as one without a label."""
    return bool(sample.get(_FIELD))


def split_by_label(samples: Sequence[DataSample]) -> tuple[list[int], list[int]]:
    """Return the positions of the labelled and of the unlabelled samples of a batch."""
    rows: tuple[list[int], list[int]] = ([], [])
    for row, sample in enumerate(samples):
        rows[is_unlabeled(sample)].append(row)
    return rows
