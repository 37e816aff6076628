"""Multi-Scale Dynamic Fusion (MSDF), the neck of MLDR-KD."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from mldr_kd_mm.models.necks.projectors import map_projector, token_projector
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, are_sizes, check_positive, is_number

_LARGE_GATE = 100  # million parameters; a ResNet18 has 12


class MSDFOutput(NamedTuple):
    """Outputs of :class:`MSDFNeck` for S stages, B samples and C classes."""

    stage_logits: Tensor
    """Logits of each stage (S, B, C)."""
    fused_logits: Tensor
    """Sum of the stages' logits (B, C), weighted for each sample and class."""
    fusion_weights: Tensor
    """Weights (B, S, C), which sum to 1 over the stages."""


class StageClassifier(nn.Linear):
    """Linear layer of a stage, which :class:`MSDFNeck` applies together with the other stages'."""


@MODELS.register_module()
class MSDFNeck(BaseModule):
    """Project the stages of a student to logits and fuse them with learned weights.

    A projector turns stage s of S into a descriptor with ``project_dim`` channels: maps go through
    S - s convolutional blocks that halve the resolution, tokens through merges of neighbours and
    transformer blocks. A linear layer gives the logits of the stage. One gate, shared by the
    stages, scores each class of each descriptor, and a softmax over the stages turns the scores
    into fusion weights.

    Source: MLDR-KD (arXiv 2502.06189), section "Multi-Scale Dynamic Fusion", and the authors'
    release. The release has no projectors for tokens; these are OFA-KD's.

    Args:
        in_channels: Width of each stage's feature, from the first to the last. None: the Distiller
            sets it.
        project_dim: Width of the descriptors. None: the width of the last stage. If the last stage
            is a map, the Distiller uses the width of the teacher's feature instead if that is
            larger, as in the paper.
        grids: (H, W) of each stage's token grid, or None for a stage that is a map. None: all
            stages are maps. The Distiller sets it.
        num_classes: Number of classes C. The Distiller sets it if the config omits it.
        gate_dim: Hidden width of the gate. None: 4C, which is large for thousands of classes. 0: no
            gate, all stages have equal weights (an ablation in the paper).

    Raises:
        ConfigError: If a width is missing or not positive, or ``grids`` does not fit the stages.
    """

    def __init__(
        self,
        in_channels: Sequence[int] | None = None,
        project_dim: int | None = None,
        grids: Sequence[tuple[int, int] | None] | None = None,
        *,
        num_classes: int,
        gate_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(in_channels, Sequence) or not in_channels:
            raise ConfigError(
                f'in_channels={in_channels!r}: must list the width of each stage (a Distiller '
                'sets it)'
            )
        for channels in in_channels:
            check_positive(in_channels=channels)
        check_positive(num_classes=num_classes)
        project_dim = in_channels[-1] if project_dim is None else project_dim
        gate_dim = 4 * num_classes if gate_dim is None else gate_dim
        check_positive(project_dim=project_dim)
        self.in_channels = tuple(in_channels)
        self.grids = _check_grids(grids, len(in_channels))
        last = len(in_channels) - 1
        self.projectors = nn.ModuleList(
            nn.ModuleDict(
                {
                    'project': _projector(channels, grid, project_dim, num_blocks=last - stage),
                    'classifier': StageClassifier(project_dim, num_classes),
                }
            )
            for stage, (channels, grid) in enumerate(zip(in_channels, self.grids, strict=True))
        )
        self.gate = _gate(project_dim, gate_dim, num_classes)
        self.apply(_init)

    def forward(self, features: Sequence[Tensor]) -> MSDFOutput:
        """Project and fuse the stages.

        Args:
            features: A map (B, C_s, H_s, W_s) or tokens (B, [1 +] H_s * W_s, C_s) of each stage,
                from the first to the last, with the class token, if any, in front.

        Returns:
            The logits of the stages, the fused logits and the fusion weights.

        Raises:
            ConfigError: If the number, widths or grids of the features do not fit.
        """
        self._check(features)
        descriptors = torch.stack(
            [
                projector['project'](feature)
                for projector, feature in zip(self.projectors, features, strict=True)
            ]
        )
        stage_logits = self._classify(descriptors)
        if self.gate is None:
            scores = stage_logits.new_zeros(()).expand_as(stage_logits)
        else:
            scores = self.gate(descriptors)
        weights = scores.softmax(dim=0)
        fused_logits = (weights * stage_logits).sum(dim=0)
        return MSDFOutput(stage_logits, fused_logits, weights.transpose(0, 1))

    def _classify(self, descriptors: Tensor) -> Tensor:
        """Apply each stage's classifier, (S, B, D) -> (S, B, C), in one product."""
        layers = [projector['classifier'] for projector in self.projectors]
        weights = torch.stack([layer.weight for layer in layers])
        biases = torch.stack([layer.bias for layer in layers])
        return torch.baddbmm(biases.unsqueeze(1), descriptors, weights.mT)

    def _check(self, features: Sequence[Tensor]) -> None:
        shapes = [tuple(feature.shape) for feature in features]
        if any(len(shape) not in (3, 4) for shape in shapes):
            raise ConfigError(
                f'features: have shapes {shapes}; must be maps (B, C, H, W) or tokens (B, N, C)'
            )
        widths = tuple(shape[1 if len(shape) == 4 else 2] for shape in shapes)
        if widths != self.in_channels:
            raise ConfigError(
                f'in_channels={self.in_channels}: must be {widths}, the widths of the features'
            )
        for grid, shape in zip(self.grids, shapes, strict=True):
            if (grid is None) != (len(shape) == 4):
                raise ConfigError(
                    f'grids={self.grids}: the features have shapes {shapes}; must be (H, W) for '
                    'tokens (B, N, C), None for a map (B, C, H, W)'
                )
            if grid and shape[1] - math.prod(grid) not in (0, 1):
                raise ConfigError(
                    f'grids={self.grids}: {grid} has {math.prod(grid)} tokens; must be those of '
                    f'the feature, {shape[1]}, with or without a class token'
                )


def _projector(
    channels: int, grid: tuple[int, int] | None, project_dim: int, num_blocks: int
) -> nn.Module:
    if grid is None:
        return map_projector(channels, project_dim, num_blocks)
    return token_projector(grid, channels, project_dim, num_blocks)


def _gate(project_dim: int, gate_dim: int, num_classes: int) -> nn.Module | None:
    if gate_dim == 0 and is_number(gate_dim):
        return None
    check_positive(gate_dim=gate_dim)
    _warn_of_size(project_dim, gate_dim, num_classes)
    return nn.Sequential(
        nn.Linear(project_dim, gate_dim), nn.GELU(), nn.Linear(gate_dim, num_classes)
    )


def _warn_of_size(project_dim: int, gate_dim: int, num_classes: int) -> None:
    """Say how large the gate is before its memory is allocated."""
    size = gate_dim * (project_dim + num_classes) / 1e6
    if size > _LARGE_GATE:
        print_log(
            f'neck: its gate has {size:,.0f} M parameters for {num_classes:,} classes; to make it '
            f'smaller, set neck.gate_dim, now {gate_dim:,}, for example to {project_dim}',
            'current',
            logging.WARNING,
        )


def _check_grids(
    grids: Sequence[Sequence[int] | None] | None, num_stages: int
) -> tuple[tuple[int, int] | None, ...]:
    if grids is None:
        return (None,) * num_stages
    is_list = isinstance(grids, Sequence) and len(grids) == num_stages
    if not is_list or not all(grid is None or are_sizes(grid, 2) for grid in grids):
        raise ConfigError(
            f'grids={grids!r}: must have (H, W), or None for a map, for each of {num_stages} stages'
        )
    return tuple(grid and tuple(grid) for grid in grids)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode='fan_out')
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
