"""One entry of a Distiller's ``losses``: which loss compares which tensors, with which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.registry import MODELS

STAGE_LOGITS = 'stage_logits'
"""The one name that stands for a stack of heads, (S, B, C)."""


class Comparison(nn.Module):
    """Compares named tensors of the student with one of the teacher.

    All heads of the student go through the loss in one call, so that it does the teacher's part of
    its work once.

    Args:
        loss: Config of the loss; called with the student's (K, B, C) and the teacher's (B, C), or
            with one (B, C) each, and returns (K,) or a scalar.
        student: One name or several of the student's tensors.
        teacher: The name of the teacher's tensor.
        weight: Factor of the loss, one number or one per name of the student.
        name: Name in the log, as in ``loss_<name>_logits``.

    Raises:
        ConfigError: If weights and names do not fit.
    """

    def __init__(
        self,
        loss: dict,
        student: str | Sequence[str] = 'logits',
        teacher: str = 'logits',
        weight: float | Sequence[float] = 1.0,
        name: str = 'kd',
    ) -> None:
        super().__init__()
        self.loss = MODELS.build(loss)
        self.student = [student] if isinstance(student, str) else list(student)
        self.teacher = teacher
        self.name = name
        weights = [weight] * len(self.student) if isinstance(weight, (int, float)) else list(weight)
        if len(weights) != len(self.student) or not all(w >= 0 for w in weights):
            raise ConfigError(
                f'losses: {name}: weight={weight!r}: must be a number of 0 or more, or one for '
                f'each of {self.student}'
            )
        self.weights = dict(zip(self.student, weights, strict=True))

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compare.

        Args:
            student: Name -> tensor of the student.
            teacher: Name -> tensor of the teacher.

        Returns:
            ``loss_<name>_<head>`` -> weighted scalar, one for each head.

        Raises:
            ConfigError: If the heads have different shapes.
        """
        heads, labels, weights = [], [], []
        for name in self.student:
            stacked = student[name].unbind() if name == STAGE_LOGITS else [student[name]]
            heads += stacked
            labels += _labels(name, len(stacked))
            weights += [self.weights[name]] * len(stacked)
        if len({head.shape for head in heads}) > 1:
            shapes = ', '.join(
                f'{label} {tuple(head.shape)}' for label, head in zip(labels, heads, strict=True)
            )
            raise ConfigError(f'losses: {self.name}: heads of different shapes: {shapes}')
        if len(heads) == 1:
            values = self.loss(heads[0], teacher[self.teacher]).unsqueeze(0)
        else:
            values = self.loss(torch.stack(heads), teacher[self.teacher])
        return {
            f'loss_{self.name}_{label}': weight * value
            for label, weight, value in zip(labels, weights, values, strict=True)
        }


def _labels(name: str, count: int) -> list[str]:
    if name == STAGE_LOGITS:
        return [f'stage{i + 1}' for i in range(count)]
    return [name.removesuffix('_logits')]
