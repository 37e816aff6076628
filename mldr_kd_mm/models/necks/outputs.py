"""The contract of a neck: named outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from mldr_kd_mm.utils.errors import ConfigError

FUSION_WEIGHTS = 'fusion_weights'
"""An optional output: weights (B, S, C) of the S features that a neck reads, for the log."""


def named_outputs(outputs: Any) -> dict[str, Tensor]:
    """Return the outputs of a neck by name.

    Args:
        outputs: What the neck returned: a mapping or a NamedTuple of name -> tensor. Losses read
            the tensors by these names.

    Raises:
        ConfigError: If it is neither, or is empty.
    """
    named = outputs._asdict() if hasattr(outputs, '_asdict') else outputs
    if isinstance(named, Mapping) and named:
        items = named.items()
        if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in items):
            return dict(named)
    raise ConfigError(
        f'neck: returned a {type(outputs).__name__}; must return a dict or NamedTuple of name -> '
        'tensor, at least one'
    )


def check_outputs(outputs: Mapping[str, Tensor], num_features: int, taken: Collection[str]) -> None:
    """Check the outputs of a neck for one image.

    Args:
        outputs: Name -> tensor.
        num_features: Number of features S that the neck read.
        taken: Names of the student's own tensors.

    Raises:
        ConfigError: If a name is taken, or the fusion weights have a wrong shape.
    """
    for name, value in outputs.items():
        if name in taken:
            raise ConfigError(
                f'neck: output {name!r}: must have another name; the student has a tensor of this '
                'name'
            )
        shape = tuple(value.shape)
        if name == FUSION_WEIGHTS and (len(shape) != 3 or shape[1] != num_features):
            raise ConfigError(
                f'neck: output {name!r}: has shape {shape}; must be (B, {num_features}, C), one '
                'weight for each feature and class'
            )
