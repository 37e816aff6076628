"""Weights of a student's backbone, for detection and segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mmpretrain.models import ImageClassifier
from torch import Tensor

from mldr_kd_mm.models.weights import head_of
from mldr_kd_mm.utils.errors import ConfigError

if TYPE_CHECKING:
    from mldr_kd_mm.apis.student import RebuiltStudent


def backbone_weights(student: RebuiltStudent, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a student's weights without its head, under the names of its library's backbones.

    Args:
        student: The student.
        weights: All of its weights.

    Returns:
        Name -> weight. Those of a timm model have the names that ``features_only=True`` expects,
        those of an mmpretrain classifier the names of its ``backbone``.

    Raises:
        ConfigError: The student's head is unknown.
    """
    if isinstance(student.model, ImageClassifier):
        start = 'backbone.'
        return {
            name.removeprefix(start): value
            for name, value in weights.items()
            if name.startswith(start)
        }
    heads = _heads(student) if student.num_classes else []
    return {
        name: value
        for name, value in weights.items()
        if not any(name.startswith(f'{head}.') for head in heads)
    }


def _heads(student: RebuiltStudent) -> list[str]:
    """Return the paths of the layers that give logits; a distilled DeiT has two."""
    names = student.model.model.pretrained_cfg.get('classifier') if student.is_timm else None
    heads = [names] if isinstance(names, str) else list(names or [head_of(student.model)])
    if not all(heads):
        raise ConfigError(
            "backbone=True: the student's head is unknown; export all of its weights instead"
        )
    return heads
