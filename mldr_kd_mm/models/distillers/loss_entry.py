"""One entry of a Distiller's ``losses``: which loss compares which tensors, with which weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mldr_kd_mm.models.taps.layout import Layout
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_config, checked_arguments, is_number, named

STAGE_LOGITS = 'stage_logits'
"""The one name that stands for a stack of heads, (S, B, C)."""


class Probe(NamedTuple):
    """What one model gave for one empty image."""

    tensors: dict[str, Tensor]
    """Name -> tensor."""
    layouts: dict[str, Layout]
    """Name -> layout, of the stages."""

    def width(self, name: str) -> int:
        """The width of a map (B, C, H, W), tokens (B, N, C) or a vector (B, C)."""
        tensor = self.tensors[name]
        return tensor.shape[1 if tensor.dim() == 4 else -1]

    def grid(self, name: str) -> tuple[int, int] | None:
        """The (H, W) that tokens stand for; None of all else."""
        layout = self.layouts.get(name)
        return None if layout is None or layout.is_map else layout.grid


class Comparison(nn.Module):
    """Compares named tensors of the student with the teacher's.

    Where ``teacher`` is one name, all heads of the student go through the loss in one call, so that
    it does the teacher's part of its work once. Where it lists a name for each of the student's,
    each pair has a loss of its own.

    What a loss's config leaves out of ``student_width``, ``teacher_width``, ``student_grid`` and
    ``teacher_grid`` is found. A loss whose ``forward`` has a parameter ``target`` gets the labels,
    one that has ``index`` the samples' numbers in the training set.

    Args:
        loss: Config of the loss; called with the student's (K, B, C) and the teacher's (B, C), or
            with one tensor each, and returns (K,) or a scalar.
        student: One name or several of the student's tensors.
        teacher: The name of the teacher's tensor, or one for each of the student's.
        weight: Factor of the loss, one number or one per name of the student.
        name: Name in the log, as in ``loss_<name>_logits``.

    Raises:
        ConfigError: If weights and names do not fit, or are none.
    """

    @checked_arguments
    def __init__(
        self,
        loss: dict,
        student: str | Sequence[str] = 'logits',
        teacher: str | Sequence[str] = 'logits',
        weight: float | Sequence[float] = 1.0,
        name: str = 'kd',
    ) -> None:
        super().__init__()
        if not isinstance(name, str) or not name:
            raise ConfigError(f'losses: name={name!r}: must be a text')
        self.name = name
        with self._named():
            check_config(loss=loss)
        self.config = loss
        self.student = self._listed('student', student)
        self.teacher = self._listed('teacher', teacher)
        self.in_pairs = not isinstance(teacher, str)
        if self.in_pairs and len(self.teacher) != len(self.student):
            raise ConfigError(
                f'losses: {name}: teacher={teacher!r}: must be one name, or one for each of '
                f'{self.student}'
            )
        weights = weight if isinstance(weight, (list, tuple)) else [weight] * len(self.student)
        right = all(is_number(w) and 0 <= w < math.inf for w in weights)
        if len(weights) != len(self.student) or not right:
            raise ConfigError(
                f'losses: {name}: weight={weight!r}: must be a number of 0 or more, or one for '
                f'each of {self.student}'
            )
        self.weights = dict(zip(self.student, weights, strict=True))
        self.losses = nn.ModuleList()
        self.needs: set[str] = set()

    def build(self, student: Probe, teacher: Probe) -> Comparison:
        """Build the loss for what was probed, and run it once: it may refuse the tensors.

        From then on ``needs`` has what the loss takes beside them: ``target``, ``index`` or none.

        Returns:
            Itself.

        Raises:
            ConfigError: If the loss cannot be built for these tensors or does not take them.
        """
        with self._named():
            self._build(student, teacher)
        return self

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], **labels: Tensor
    ) -> dict[str, Tensor]:
        """Compare.

        Args:
            student: Name -> tensor of the student.
            teacher: Name -> tensor of the teacher.
            labels: ``target`` (B,) or (B, C), ``index`` (B,), as far as the loss needs them.

        Returns:
            ``loss_<name>_<head>`` -> weighted scalar, one for each head.

        Raises:
            ConfigError: If the heads have different shapes.
        """
        labels = {name: labels[name] for name in self.needs}
        if self.in_pairs:
            names, weights = self.student, list(self.weights.values())
            values = [
                loss(student[name_s], teacher[name_t], **labels)
                for loss, name_s, name_t in zip(
                    self.losses, self.student, self.teacher, strict=True
                )
            ]
        else:
            names, weights, heads = self._heads(student)
            values = self._compare_heads(names, heads, teacher[self.teacher[0]], labels)
        return {
            f'loss_{self.name}_{name}': weight * value
            for name, weight, value in zip(names, weights, values, strict=True)
        }

    def _build(self, student: Probe, teacher: Probe) -> None:
        pairs = list(zip(self.student, self.teacher, strict=False))
        for name_s, name_t in pairs if self.in_pairs else pairs[:1]:
            found = dict(
                student_width=student.width(name_s),
                teacher_width=teacher.width(name_t),
                student_grid=student.grid(name_s),
                teacher_grid=teacher.grid(name_t),
            )
            self.losses.append(_build_loss(self.config, found))
        # The first two are the tensors, whatever their names (mmpretrain's losses have `target`).
        parameters = list(inspect.signature(self.losses[0].forward).parameters)
        self.needs = {'target', 'index'} & set(parameters[2:])
        if getattr(self.losses[0], 'compares_logits', False):
            num_classes = student.width('logits')
            self._check_logits('student', self.student, student, num_classes)
            self._check_logits('teacher', self.teacher, teacher, num_classes)
        self._try(student, teacher)

    def _heads(self, student: Mapping[str, Tensor]) -> tuple[list[str], list[float], list[Tensor]]:
        """The heads' names, weights and tensors, those of the stages one by one."""
        names, weights, heads = [], [], []
        for name in self.student:
            stacked = student[name].unbind() if name == STAGE_LOGITS else [student[name]]
            heads += stacked
            names += _labels(name, len(stacked))
            weights += [self.weights[name]] * len(stacked)
        return names, weights, heads

    def _compare_heads(
        self, names: list[str], heads: list[Tensor], teacher: Tensor, labels: dict[str, Tensor]
    ) -> Tensor | list[Tensor]:
        if len({head.shape for head in heads}) > 1:
            shapes = ', '.join(
                f'{name} {tuple(head.shape)}' for name, head in zip(names, heads, strict=True)
            )
            raise ConfigError(f'losses: {self.name}: heads of different shapes: {shapes}')
        (loss,) = self.losses
        if len(heads) == 1:
            return [loss(heads[0], teacher, **labels)]
        return loss(torch.stack(heads), teacher, **labels)

    def _check_logits(self, side: str, names: list[str], probe: Probe, num_classes: int) -> None:
        """Refuse features for a loss that compares logits, also where their widths agree."""
        for name in names:
            if probe.tensors[name].dim() == 4 or probe.width(name) != num_classes:
                raise ConfigError(
                    f'losses: {self.name}: {side}={name!r}: {type(self.losses[0]).__name__} '
                    f'compares logits of {num_classes} classes, this has the shape '
                    f'{tuple(probe.tensors[name].shape)}'
                )

    def _listed(self, side: str, names: str | Sequence[str]) -> list[str]:
        listed = [names] if isinstance(names, str) else names
        is_list = isinstance(listed, (list, tuple)) and listed
        if not is_list or not all(isinstance(name, str) for name in listed):
            raise ConfigError(f'losses: {self.name}: {side}={names!r}: must be one name or several')
        if side == 'student' and len(set(listed)) < len(listed):
            raise ConfigError(
                f'losses: {self.name}: {side}={names!r}: each name must be there once'
            )
        return list(listed)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Let errors say which of the losses it is."""
        prefix = f'losses: {self.name}: '
        try:
            with named('loss'):
                yield
        except ConfigError as error:
            raise ConfigError(prefix + f'{error}'.removeprefix(prefix)) from error

    @torch.no_grad()
    def _try(self, student: Probe, teacher: Probe) -> None:
        first = torch.zeros(1, dtype=torch.long)
        # In evaluation mode a BatchNorm takes one sample, and a memory bank stays as it is.
        self.eval()
        self(student.tensors, teacher.tensors, target=first, index=first)
        self.train()


def _build_loss(config: dict, found: dict[str, Any]) -> nn.Module:
    """Build a loss; what its config leaves out and its class takes, is what was found."""
    kind = config['type']
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    takes = inspect.signature(kind).parameters if kind is not None else ()
    given = {key: value for key, value in config.items() if value is not None or key not in found}
    return MODELS.build({key: value for key, value in found.items() if key in takes} | given)


def _labels(name: str, count: int) -> list[str]:
    if name == STAGE_LOGITS:
        return [f'stage{i + 1}' for i in range(count)]
    return [name.removesuffix('_logits')]
