"""Collect the outputs of a student and its teacher for metrics and figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.evaluation.measures import Array, Labels
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.stages import has_head, stage_names
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.utils.errors import ConfigError


@dataclass
class Observations:
    """Outputs for N samples, C classes and S stages; None or empty if the model has none."""

    labels: Labels
    """Labels (N,)."""
    student: Array
    """Logits (N, C) of the student, or of a classifier without a teacher."""
    teacher: Array | None = None
    """Logits (N, C) of the teacher, or of several together."""
    fused: Array | None = None
    """Fused logits (N, C) of the neck."""
    fusion_weights: Array | None = None
    """Weights of the neck's fusion (S, C), averaged over the samples."""
    student_stages: dict[str, Array] = field(default_factory=dict)
    """Stage -> feature (N, D) of the student, averaged over the map or the tokens."""
    teacher_stages: dict[str, Array] = field(default_factory=dict)
    """The same of the teacher; of several, the stages are ``teacher1.stage1``, ..."""


class Observer:
    """Run a model on batches and collect its outputs.

    The model must be in evaluation mode. It is not changed, and no random number is drawn.

    Args:
        model: A Distiller, whose student and teacher are both observed, or a classifier.

    Raises:
        ConfigError: If the student has no head.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._gathered: dict[str, list[Tensor]] = defaultdict(list)
        self._is_pair = isinstance(model, Distiller)
        if not (model.tapped_student.has_head if self._is_pair else has_head(model)):
            raise ConfigError(
                'the student has no head, and thus no predictions to show; its accuracy is that of '
                'its nearest neighbours (kNN)'
            )
        if self._is_pair:
            self._student = _Stages(model.tapped_student, model.neck_inputs)
            self._teachers = {label: _Stages(each) for label, each, _ in model.teachers}

    @torch.no_grad()
    def add(self, inputs: Tensor, data_samples: Sequence[DataSample]) -> None:
        """Run the model on a batch.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.
            data_samples: Labels of the batch.
        """
        labels = torch.cat([sample.gt_label for sample in data_samples])
        given = self._pair(inputs) if self._is_pair else dict(student=self._model(inputs))
        for name, tensor in {'labels': labels, **given}.items():
            self._gathered[name].append(tensor.detach().cpu())

    def observations(self) -> Observations:
        """Return the outputs of all batches so far, at least one.

        Raises:
            ConfigError: If a logit or feature is not finite, as in a run that diverged.
        """
        joined = {
            name: (tensor if name == 'labels' else tensor.float()).numpy()
            for name, tensor in ((name, torch.cat(parts)) for name, parts in self._gathered.items())
        }
        for name, values in joined.items():
            wrong = int((~np.isfinite(values)).reshape(len(values), -1).any(1).sum())
            if wrong:
                raise ConfigError(f'{name}: {wrong} of {len(values)} samples are not finite')
        stages = {
            side: {
                name.removeprefix(f'{side}.'): joined.pop(name)
                for name in list(joined)
                if name.startswith(f'{side}.')
            }
            for side in ('student', 'teacher')
        }
        if 'fusion_weights' in joined:
            joined['fusion_weights'] = joined['fusion_weights'].mean(0, dtype=np.float64)
        return Observations(
            **joined, student_stages=stages['student'], teacher_stages=stages['teacher']
        )

    def _pair(self, inputs: Tensor) -> dict[str, Tensor]:
        model = self._model
        student, stages = self._student(inputs)
        given = dict(student=student)
        outputs = model.run_neck(stages)
        for name, output in (('fused', 'fused_logits'), ('fusion_weights', 'fusion_weights')):
            if output in outputs:
                given[name] = outputs[output]
        recorded, logits = {f'student.{name}': stage for name, stage in stages.items()}, []
        for label, teacher, _ in model.teachers:
            own, stages = self._teachers[label](teacher.prepare(inputs))
            logits.append(own)
            prefix = label if label == 'teacher' else f'teacher.{label}'
            recorded |= {f'{prefix}.{name}': stage for name, stage in stages.items()}
        shapes = {None if own is None else own.shape for own in logits}
        if len(shapes) == 1 and None not in shapes:
            given['teacher'] = model.teacher.combine(logits)
        return given | {name: _pool(feature) for name, feature in recorded.items()}


class _Stages:
    """Record all stages of a model, also those that no loss reads.

    Args:
        tapped: The model. Its own recorder stays as it is.
        wanted: Names of the taps to record. Empty: the stages.
    """

    def __init__(self, tapped: TappedModel, wanted: Sequence[str] = ()) -> None:
        taps = tapped.recorder.taps
        if isinstance(taps, dict):
            taps = {name: taps[name] for name in wanted or stage_names(taps)}
        self._tapped = TappedModel(tapped.model, FeatureRecorder(taps or 'stages'))
        self._wanted = wanted
        self._names: Sequence[str] | None = None

    def __call__(self, images: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the logits (B, C), None without a head, and the stages, empty if it has none."""
        if self._names is None:
            self._names = self._find(images.shape[1:])
        record = self._tapped(images, self._names)
        return record.get('logits'), {name: record[name] for name in self._names}

    def _find(self, size: Sequence[int]) -> Sequence[str]:
        try:
            names = self._wanted or self._tapped.find_stages(size)
        except ConfigError:
            return []
        self._tapped.probe(names, size)
        return names


def _pool(feature: Tensor) -> Tensor:
    """Average a map (B, C, H, W) or tokens (B, N, C): (B, C)."""
    return feature.flatten(2).mean(2) if feature.dim() == 4 else feature.mean(1)
