"""The ``subset`` option of the data sets."""

from __future__ import annotations

from collections.abc import Sequence

from mldr_kd_mm.utils.errors import ConfigError, check_positive

ACCEPT = (
    'accept it with verify=False in each data set of the config: train_dataloader.dataset.verify, '
    'val_dataloader.dataset.verify, test_dataloader.dataset.verify'
)
"""How to use data that is not the official one, for errors."""


def take_subset(
    data_list: list[dict], classes: Sequence[str], subset: dict | None
) -> tuple[list[dict], Sequence[str]]:
    """Keep some classes, or some images of each class.

    Args:
        data_list: One dict per image, with its class in ``gt_label``.
        classes: Names of all classes.
        subset: None for everything, or ``dict(labels=[...], per_class=N)``. ``labels`` are the
            classes to keep (default: all), relabelled 0, 1, … in the given order; ``per_class``
            is how many of the first images of each class to keep (default: all).

    Returns:
        The kept images, in the order of ``data_list``, and the names of their classes.

    Raises:
        ConfigError: An unknown key, an unknown or repeated label, ``per_class`` below 1 or above
            the number of images, a class without images, or fewer names than classes.
    """
    if subset is None:
        return data_list, classes
    if not isinstance(subset, dict) or set(subset) - {'labels', 'per_class'}:
        raise ConfigError(f'subset={subset!r}: must be None or dict(labels=[...], per_class=N)')
    labels, per_class = subset.get('labels'), subset.get('per_class')
    if labels is None and per_class is None:
        return data_list, classes

    highest = max(info['gt_label'] for info in data_list)
    if highest >= len(classes):
        raise ConfigError(
            f'classes has {len(classes)} names, but labels go up to {highest}; name all classes of '
            'the whole data set'
        )
    if labels is None:
        labels = range(len(classes))
    else:
        _check_labels(labels, len(classes))
    if per_class is not None:
        check_positive(**{'subset.per_class': per_class})

    new_label = {label: position for position, label in enumerate(labels)}
    counts = dict.fromkeys(labels, 0)
    kept = []
    for info in data_list:
        label = info['gt_label']
        if label in new_label and counts[label] != per_class:
            counts[label] += 1
            kept.append({**info, 'gt_label': new_label[label]})

    wanted = per_class or 1
    for label, count in counts.items():
        if count < wanted:
            raise ConfigError(
                f'subset={subset!r}: class {label} ({classes[label]}) must have {wanted} or more '
                f'images in this split, it has {count}'
            )
    return kept, tuple(classes[label] for label in labels)


def _check_labels(labels: Sequence[int], num_classes: int) -> None:
    if not isinstance(labels, (list, tuple)) or not labels:
        raise ConfigError(f'subset.labels={labels!r}: must be None or a list of class numbers')
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < num_classes:
            raise ConfigError(
                f'subset.labels holds {label!r}; labels must be integers from 0 to '
                f'{num_classes - 1}'
            )
        if labels.count(label) > 1:
            raise ConfigError(f'subset.labels holds {label} more than once; list each class once')
