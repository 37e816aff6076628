"""Multi-Scale Dynamic Fusion, the neck of MLDR-KD."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.necks.projectors import map_projector
from mldr_kd_mm.registry import MODELS


class MSDFOutput(NamedTuple):
    """What :class:`MSDFNeck` returns, for S stages, B samples and C classes."""

    stage_logits: Tensor
    """(S, B, C): the logits of each stage."""
    fused_logits: Tensor
    """(B, C): their sum, weighted for each sample and class."""
    fusion_weights: Tensor
    """(B, S, C): the weights, which sum to 1 over the stages."""


@MODELS.register_module()
class MSDFNeck(BaseModule):
    """Projects the stages of a student to logits and fuses them with learned weights.

    A projector brings stage s of S to a descriptor of ``project_dim`` channels, through S - s
    blocks that halve the resolution, and a linear layer makes its logits. One gate, shared by the
    stages, scores each class of each descriptor; a softmax of the scores over the stages gives the
    weights of the fusion.

    Source: MLDR-KD (arXiv 2502.06189), section "Multi-Scale Dynamic Fusion", and the authors'
    release.

    Args:
        in_channels: Width of each stage's feature map, from the first to the last. The Distiller
            finds it when it is None.
        project_dim: Width of the descriptors. None: the width of the last stage; the Distiller
            takes the teacher's final width where that is larger, as the paper does.
        num_classes: Number of classes C. The Distiller finds it when it is not given.
        gate_dim: Hidden width of the gate. None: 4C.

    Raises:
        ConfigError: If a width is missing or not positive.
    """

    def __init__(
        self,
        in_channels: Sequence[int] | None = None,
        project_dim: int | None = None,
        *,
        num_classes: int,
        gate_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not in_channels or not isinstance(in_channels, Sequence):
            raise ConfigError(
                f'in_channels={in_channels!r}: must list the width of each stage '
                '(inside a Distiller it is found)'
            )
        _check_positive(num_classes=num_classes)
        project_dim = in_channels[-1] if project_dim is None else project_dim
        gate_dim = 4 * num_classes if gate_dim is None else gate_dim
        _check_positive(in_channels=min(in_channels), project_dim=project_dim, gate_dim=gate_dim)
        self.in_channels = tuple(in_channels)
        last = len(in_channels) - 1
        self.projectors = nn.ModuleList(
            nn.ModuleDict(
                {
                    'project': map_projector(channels, project_dim, num_blocks=last - stage),
                    'classifier': nn.Linear(project_dim, num_classes),
                }
            )
            for stage, channels in enumerate(in_channels)
        )
        self.gate = nn.Sequential(
            nn.Linear(project_dim, gate_dim), nn.GELU(), nn.Linear(gate_dim, num_classes)
        )
        self.apply(_init)

    def forward(self, features: Sequence[Tensor]) -> MSDFOutput:
        """Project and fuse.

        Args:
            features: One map (B, C_s, H_s, W_s) a stage, from the first to the last.

        Returns:
            The logits of the stages, the fused logits and the weights of the fusion.

        Raises:
            ConfigError: If number or widths of the features are not those of ``in_channels``.
        """
        self._check(features)
        descriptors = torch.stack(
            [
                projector['project'](feature)
                for projector, feature in zip(self.projectors, features, strict=True)
            ]
        )
        stage_logits = torch.stack(
            [
                projector['classifier'](descriptor)
                for projector, descriptor in zip(self.projectors, descriptors, strict=True)
            ]
        )
        weights = self.gate(descriptors).softmax(dim=0)
        fused_logits = (weights * stage_logits).sum(dim=0)
        return MSDFOutput(stage_logits, fused_logits, weights.transpose(0, 1))

    def _check(self, features: Sequence[Tensor]) -> None:
        shapes = [tuple(feature.shape) for feature in features]
        if any(len(shape) != 4 for shape in shapes):
            raise ConfigError(f'features: shapes {shapes}: must be maps (B, C, H, W)')
        widths = tuple(shape[1] for shape in shapes)
        if widths != self.in_channels:
            raise ConfigError(f'in_channels={self.in_channels}: the features have widths {widths}')


def _check_positive(**fields: int) -> None:
    for field, value in fields.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f'{field}={value!r}: must be a whole number of 1 or more')


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out')
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
