"""Image classifiers of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mldr_kd_mm.utils.errors import ConfigError


def create(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """Return an image classifier of transformers in float32, for a ModuleClassifier.

    Args:
        name: Name of a repository on the Hugging Face hub, or the path of a folder with a
            ``config.json``.
        num_classes: Number of classes. A head for another number is initialised randomly.
        pretrained: Whether it starts from the weights in the repository or folder.

    Raises:
        ConfigError: If transformers is not installed.
    """
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError as error:
        raise ConfigError("needs transformers; run pip install 'transformers>=5,<6'") from error
    if pretrained:
        model = AutoModelForImageClassification.from_pretrained(
            name, num_labels=num_classes, ignore_mismatched_sizes=True
        )
    else:
        config = AutoConfig.from_pretrained(name, num_labels=num_classes)
        model = AutoModelForImageClassification.from_config(config)
    # Both take the precision of the repository, which may be half.
    return model.float()


def read_statistics(name: str) -> tuple[Sequence[float], Sequence[float], bool] | None:
    """Return the mean and std, on [0, 1], of a model of transformers, and whether it reads BGR.

    Args:
        name: Name of a repository, or the path of a folder.

    Returns:
        The statistics; None if nothing states them.
    """
    try:
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(name)
    except (ImportError, OSError, ValueError):
        return None  # e.g. the repository does not describe its images
    is_bgr = bool(getattr(processor, 'do_flip_channel_order', False))
    if not getattr(processor, 'do_normalize', True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), is_bgr
    of_timm = getattr(processor, 'data_config', {})  # of a model of timm in transformers
    mean, std = (
        getattr(processor, f'image_{key}', None) or of_timm.get(key) for key in ('mean', 'std')
    )
    return (mean, std, is_bgr) if mean and std else None
