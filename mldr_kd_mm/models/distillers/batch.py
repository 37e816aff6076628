"""Labels of a batch, and checks of the batch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.structures.label import is_unlabeled
from mldr_kd_mm.utils.errors import ConfigError


def read_labels(data_samples: Sequence[DataSample], names: Collection[str]) -> dict[str, Tensor]:
    """Read the labels that losses ask for.

    Args:
        data_samples: The samples of the batch.
        names: ``target``, ``index``, both or neither.

    Returns:
        ``target``: classes (B,), or probabilities (B, C) if mixup or CutMix made them soft.
        ``index``: positions of the samples in the training set (B,), on the CPU.

    Raises:
        ConfigError: If the samples have no index, or one has no label.
    """
    read = dict(target=_target, index=_index)
    return {name: read[name](data_samples) for name in names}


def check_labels(_: nn.Module, args: tuple, num_classes: int | None) -> None:
    """Check the labels of a batch, as a forward pre-hook of the data preprocessor.

    There the labels are still on the host. On the GPU the check would make every step wait.

    Args:
        args: The batch from the data loader, and whether the model is trained on it.
        num_classes: Number of classes of the models. None: they have no head, and read no label.

    Raises:
        ConfigError: If a label is out of range, or missing in training.
    """
    if num_classes is None:
        return
    samples = args[0].get('data_samples') or ()
    if args[1:] == (True,):
        check_has_labels(samples, 'train_dataloader')
    for sample in samples:
        labels = sample.get('gt_label') if isinstance(sample, DataSample) else None
        if labels is not None and not ((labels >= 0) & (labels < num_classes)).all():
            raise ConfigError(
                f'gt_label={labels.tolist()}: must be within 0..{num_classes - 1}, as the models '
                f'have {num_classes} classes'
            )


def check_has_labels(data_samples: Sequence[DataSample], field: str) -> None:
    """Check that each sample of a training batch has a label, or is marked as unlabelled.

    Args:
        data_samples: The samples.
        field: Name of the config's field that they come from.

    Raises:
        ConfigError: If a sample has none.
    """
    for sample in data_samples:
        is_known = 'gt_label' in sample or 'gt_score' in sample or is_unlabeled(sample)
        if isinstance(sample, DataSample) and not is_known:
            name = sample.get('img_path') or sample.get('sample_idx')
            which = 'an image' if name is None else f'image {name!r}'
            raise ConfigError(
                f'{field}: {which} has no label; load_data_list() must give each image a gt_label, '
                'and the pipeline must keep it until PackInputs; UnlabeledFolder reads images '
                'without labels'
            )


def check_none_unlabeled(data_samples: Sequence[DataSample]) -> None:
    """Check that no sample of a batch is unlabelled.

    Raises:
        ConfigError: If one is.
    """
    count = sum(map(is_unlabeled, data_samples))
    if count:
        raise ConfigError(
            f'train_dataloader.dataset: {count} of {len(data_samples)} images of a batch have no '
            'label, which the model or a loss needs'
        )


@contextmanager
def refuse_one_image(batch_size: int) -> Iterator[None]:
    """Replace torch's error for a BatchNorm with one value per channel.

    Raises:
        ConfigError: If a BatchNorm inside the ``with`` cannot be trained on a batch of one image.
    """
    try:
        yield
    except ValueError as error:
        if batch_size > 1 or 'more than 1 value per channel' not in str(error):
            raise
        raise ConfigError(
            'batch_size=1: must be 2 or more, as BatchNorm cannot be trained on one image; '
            'train_dataloader.drop_last=True leaves out a last batch of one'
        ) from error


def _target(data_samples: Sequence[DataSample]) -> Tensor:
    check_none_unlabeled(data_samples)
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    return torch.cat([sample.gt_label for sample in data_samples])


def _index(data_samples: Sequence[DataSample]) -> Tensor:
    if 'sample_idx' not in data_samples[0]:
        raise ConfigError(
            "PackInputs: meta_keys: must have 'sample_idx', which a loss reads as index"
        )
    return torch.tensor([sample.sample_idx for sample in data_samples])
