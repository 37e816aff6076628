"""An entry of a Distiller's ``losses``: a loss, the tensors that it compares and their weights."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mldr_kd_mm.models.builder import build_for
from mldr_kd_mm.models.taps.stages import DISTILLATION_LOGITS
from mldr_kd_mm.models.taps.tapped_model import Probe
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import ConfigError, check_config, checked_arguments, is_number, named

STAGE_LOGITS = 'stage_logits'
"""The neck's logits of all stages, (S, B, C). Each stage counts as a head of its own."""


class LossEntry(nn.Module):
    """Compare named tensors of the student with the teacher's.

    If ``teacher`` is one name, all heads of the student go through the loss in one call, so that
    its work on the teacher is done once. If ``teacher`` is a list with one name for each of the
    student's, each pair gets its own loss.

    If the config of a loss omits ``student_width``, ``teacher_width``, ``student_grid``,
    ``teacher_grid`` or ``num_classes`` and the loss takes it, the value comes from the models. A
    loss whose ``forward`` has a parameter ``target`` gets the labels of the batch; one with
    ``index`` gets the positions of its samples in the training set; ``student_logits`` and
    ``teacher_logits`` are the models' ``logits``, beside the tensors that it compares.

    Args:
        loss: Config of the loss. It is called with the student's heads (K, B, C) and the teacher's
            (B, C) and returns (K,), or with one tensor of each and returns a scalar.
        student: Names of the student's tensors, one or a list.
        teacher: Name of the teacher's tensor, or a list with one for each of the student's.
        weight: Factor of the loss, at least 0; one number, or one for each name in ``student``.
        name: Name of the entry, used in the log as ``loss_<name>_<head>``.

    Raises:
        ConfigError: If an argument is invalid, or the numbers of names or weights differ.
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
            raise ConfigError(f'losses: name={name!r}: must be a non-empty string')
        self.name = name
        with self._named():
            check_config(loss=loss)
        self.config = loss
        self.student = self._listed('student', student)
        self.teacher = self._listed('teacher', teacher)
        self.in_pairs = not isinstance(teacher, str)
        if self.in_pairs and len(self.teacher) != len(self.student):
            raise ConfigError(
                f'losses: {name}: teacher={teacher!r}: must be one name, or a list with one for '
                f'each of {self.student}'
            )
        weights = weight if isinstance(weight, (list, tuple)) else [weight] * len(self.student)
        right = all(is_number(w) and 0 <= w < math.inf for w in weights)
        if len(weights) != len(self.student) or not right:
            raise ConfigError(
                f'losses: {name}: weight={weight!r}: must be a non-negative number, or a list '
                f'with one for each of {self.student}'
            )
        self.weights = dict(zip(self.student, weights, strict=True))
        self.losses = nn.ModuleList()
        with self._named():
            inputs = _inputs_beside_the_tensors(loss)
        self.needs = {'target', 'index'} & inputs
        self.logits_beside = [side for side in ('student', 'teacher') if f'{side}_logits' in inputs]

    def reads(self, side: str) -> list[str]:
        """Return the names of all tensors of ``student`` or ``teacher`` that the loss reads."""
        compared = dict(student=self.student, teacher=self.teacher)[side]
        return [*compared, 'logits'] if side in self.logits_beside else compared

    def check_names(self, student: Sequence[str], teacher: Sequence[str]) -> None:
        """Check that the tensors exist.

        Args:
            student: Names of the student's and the neck's tensors.
            teacher: Names of the teacher's tensors.

        Raises:
            ConfigError: If a name is unknown.
        """
        for side, names, available in (
            ('student', self.reads('student'), student),
            ('teacher', self.reads('teacher'), teacher),
        ):
            for name in names:
                if name not in available:
                    is_msdf = side == 'student' and name in (STAGE_LOGITS, 'fused_logits')
                    hint = "; neck=dict(type='MSDFNeck') adds it" if is_msdf else ''
                    if name == DISTILLATION_LOGITS:
                        hint = '; a student of timm with two heads has it, such as '
                        hint += 'deit_tiny_distilled_patch16_224'
                    what = f'the {side} has no head' if name == 'logits' else 'unknown tensor'
                    raise ConfigError(
                        f'losses: {self.name}: {side}={name!r}: {what}; '
                        f'available: {", ".join(available)}{hint}'
                    )

    def build(self, student: Probe, teacher: Probe) -> LossEntry:
        """Build the loss for the models' tensors, and run it once to check that it takes them.

        Args:
            student: Tensors of the student and the neck.
            teacher: Tensors of the teacher.

        Returns:
            The entry itself.

        Raises:
            ConfigError: If the loss cannot be built or does not take these tensors.
        """
        with self._named():
            self._build(student, teacher)
        return self

    def check_needs_no_class(self, head: str) -> None:
        """Refuse a loss that needs one class for each image.

        Args:
            head: Name of the student's head, which predicts several classes or none.

        Raises:
            ConfigError: If the loss compares distributions over the classes, or reads ``target``.
        """
        loss = self.losses[0]
        if getattr(loss, 'compares_logits', False) or 'target' in self.needs:
            raise ConfigError(
                f'losses: {self.name}: {type(loss).__name__} needs one class for each image, which '
                f"the student's {head} does not predict; use a loss of features"
            )

    def check_needs_no_label(self, source: str) -> None:
        """Refuse a loss that needs a label for each image.

        Args:
            source: The field and type of the data set that gives none, for the error.

        Raises:
            ConfigError: If the loss reads ``target``.
        """
        if 'target' in self.needs:
            raise ConfigError(
                f'losses: {self.name}: {type(self.losses[0]).__name__} needs a label for each '
                f'image, which {source} does not give; use a loss that only compares the models, '
                'such as DFRALoss, KDLoss or DISTLoss'
            )

    def forward(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], **labels: Tensor
    ) -> dict[str, Tensor]:
        """Compute the loss of each head.

        Args:
            student: Name -> tensor of the student.
            teacher: Name -> tensor of the teacher.
            **labels: ``target`` (B,) or (B, C), and ``index`` (B,), if the loss needs them.

        Returns:
            ``loss_<name>_<head>`` -> weighted scalar.

        Raises:
            ConfigError: If the heads have different shapes.
        """
        inputs = {name: labels[name] for name in self.needs}
        of_models = dict(student=student, teacher=teacher)
        inputs |= {f'{side}_logits': of_models[side]['logits'] for side in self.logits_beside}
        names, weights = self._head_names(student)
        if self.in_pairs:
            values = self._compare_pairs(student, teacher, inputs)
        else:
            values = self._compare_heads(names, student, teacher[self.teacher[0]], inputs)
        return {
            f'loss_{self.name}_{name}': value
            for name, value in zip(names, _weigh(values, weights), strict=True)
        }

    def _build(self, student: Probe, teacher: Probe) -> None:
        with_logits = [probe for probe in (student, teacher) if 'logits' in probe.tensors]
        num_classes = with_logits[0].width('logits') if with_logits else None
        pairs = list(zip(self.student, self.teacher, strict=False))
        for name_s, name_t in pairs if self.in_pairs else pairs[:1]:
            found = dict(
                student_width=student.width(name_s),
                teacher_width=teacher.width(name_t),
                student_grid=student.grid(name_s),
                teacher_grid=teacher.grid(name_t),
                num_classes=num_classes,
            )
            self.losses.append(build_for(self.config, found))
        if getattr(self.losses[0], 'compares_logits', False):
            if num_classes is None:
                kind = type(self.losses[0]).__name__
                raise ConfigError(
                    f'{kind} compares logits, and neither the teacher nor the student has a head; '
                    'use a loss of features, such as RSDLoss'
                )
            self._check_logits('student', self.student, student, num_classes)
            self._check_logits('teacher', self.teacher, teacher, num_classes)
        self._try(student, teacher)

    def _head_names(self, student: Mapping[str, Tensor]) -> tuple[list[str], list[float]]:
        """Return the names and weights of the heads, with one head for each stage."""
        names, weights = [], []
        for name in self.student:
            own = _head_names(name, len(student[name]) if name == STAGE_LOGITS else 1)
            names += own
            weights += [self.weights[name]] * len(own)
        return names, weights

    def _compare_pairs(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        inputs: dict[str, Tensor],
    ) -> list[Tensor]:
        values = []
        for loss, name_s, name_t in zip(self.losses, self.student, self.teacher, strict=True):
            value = loss(student[name_s], teacher[name_t], **inputs)
            values += value.unbind() if name_s == STAGE_LOGITS else [value]
        return values

    def _compare_heads(
        self,
        names: list[str],
        student: Mapping[str, Tensor],
        teacher: Tensor,
        inputs: dict[str, Tensor],
    ) -> Tensor | list[Tensor]:
        parts = [student[n] if n == STAGE_LOGITS else student[n].unsqueeze(0) for n in self.student]
        if len({part.shape[1:] for part in parts}) > 1:
            heads = [head for part in parts for head in part]
            shapes = ', '.join(
                f'{name} {tuple(head.shape)}' for name, head in zip(names, heads, strict=True)
            )
            raise ConfigError(
                f'losses: {self.name}: heads have different shapes, {shapes}; must be equal'
            )
        (loss,) = self.losses
        if len(names) == 1:
            return [loss(parts[0][0], teacher, **inputs)]
        return loss(torch.cat(parts), teacher, **inputs)

    def _check_logits(self, side: str, names: list[str], probe: Probe, num_classes: int) -> None:
        """Refuse features for a loss that compares logits, even if the width fits."""
        for name in names:
            if probe.tensors[name].dim() == 4 or probe.width(name) != num_classes:
                raise ConfigError(
                    f'losses: {self.name}: {side}={name!r}: has shape '
                    f'{tuple(probe.tensors[name].shape)}; must be logits of {num_classes} classes '
                    f'for {type(self.losses[0]).__name__}'
                )

    def _listed(self, side: str, names: str | Sequence[str]) -> list[str]:
        listed = [names] if isinstance(names, str) else names
        is_list = isinstance(listed, (list, tuple)) and listed
        if not is_list or not all(isinstance(name, str) for name in listed):
            raise ConfigError(
                f'losses: {self.name}: {side}={names!r}: must be a name or a list of names'
            )
        if side == 'student' and len(set(listed)) < len(listed):
            raise ConfigError(f'losses: {self.name}: {side}={names!r}: names must be unique')
        return list(listed)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Prefix error messages with the name of the entry."""
        prefix = f'losses: {self.name}: '
        try:
            with named('loss'):
                yield
        except ConfigError as error:
            raise ConfigError(prefix + f'{error}'.removeprefix(prefix)) from error

    @torch.no_grad()
    def _try(self, student: Probe, teacher: Probe) -> None:
        first = torch.zeros(1, dtype=torch.long)
        # In evaluation mode a BatchNorm takes one sample, and a memory bank does not change.
        self.eval()
        self(student.tensors, teacher.tensors, target=first, index=first)
        self.train()


def _weigh(values: Tensor | Sequence[Tensor], weights: Sequence[float]) -> Sequence[Tensor]:
    """Multiply the losses of the heads, (K,) or K scalars, by their weights."""
    if isinstance(values, Tensor) and len({*weights}) == 1:
        return (values if weights[0] == 1 else weights[0] * values).unbind()
    return [weight * value for weight, value in zip(weights, values, strict=True)]


def _head_names(name: str, count: int) -> list[str]:
    if name == STAGE_LOGITS:
        return [f'stage{i + 1}' for i in range(count)]
    return [name.removesuffix('_logits')]


def _inputs_beside_the_tensors(loss: dict) -> set[str]:
    """Return the parameters of a loss's ``forward`` after the two tensors that it compares.

    These have any names: mmpretrain's losses call the second one ``target``. A type that does not
    exist has no parameters; building it is an error.
    """
    kind = loss.get('type')
    forward = getattr(MODELS.get(kind) if isinstance(kind, str) else kind, 'forward', None)
    return set(list(inspect.signature(forward).parameters)[3:]) if forward else set()


def build_entries(configs: Sequence[dict]) -> nn.ModuleList:
    """Make the entries of a Distiller's ``losses``; their losses are built later.

    Args:
        configs: Arguments of a :class:`LossEntry` each.

    Raises:
        ConfigError: If an entry is invalid, or two have the same name.
    """
    for config in configs:
        if not isinstance(config, dict) or not isinstance(config.get('loss'), dict):
            raise ConfigError(
                f'losses: {config!r}: must have loss=dict(type=...), as in '
                "dict(loss=dict(type='KDLoss'), name='kd')"
            )
    entries = nn.ModuleList(LossEntry(**config) for config in configs)
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'losses: name={name!r}: names must be unique, this one occurs twice')
    return entries
