"""What a student and its teacher make of some samples, kept for measuring and drawing."""

from __future__ import annotations

import re
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
from mldr_kd_mm.models.taps.stages import stage_layout
from mldr_kd_mm.utils.errors import ConfigError

_STAGE = re.compile(r'stage\d+')


@dataclass
class Observations:
    """Of N samples, C classes and S stages. What a model does not have is None, or empty."""

    labels: Labels
    """(N,)"""
    student: Array
    """Logits (N, C) of the student, or of the only model."""
    teacher: Array | None = None
    """Logits (N, C)."""
    fused: Array | None = None
    """Logits (N, C) of a neck."""
    fusion_weights: Array | None = None
    """(S, C): the weights of the neck's fusion, mean over the samples."""
    student_stages: dict[str, Array] = field(default_factory=dict)
    """Name -> (N, D): the mean over a map or over tokens."""
    teacher_stages: dict[str, Array] = field(default_factory=dict)
    """The same of the teacher."""


class Observer:
    """Runs a model on batches and gathers what it gives.

    The model must be in evaluation mode. Nothing of it is changed, and no random number is drawn.

    Args:
        model: A Distiller, of which both models are observed, or a classifier alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._gathered: dict[str, list[Tensor]] = defaultdict(list)
        self._is_pair = isinstance(model, Distiller)
        if self._is_pair:
            self._student = _stage_recorder(model.student_recorder)
            self._teacher = _stage_recorder(model.teacher.recorder)

    @torch.no_grad()
    def add(self, inputs: Tensor, data_samples: Sequence[DataSample]) -> None:
        """Run the model on a batch.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.
            data_samples: Their labels.
        """
        labels = torch.cat([sample.gt_label for sample in data_samples])
        given = self._pair(inputs) if self._is_pair else dict(student=self._model(inputs))
        for name, tensor in {'labels': labels, **given}.items():
            self._gathered[name].append(tensor.detach().cpu())

    def observations(self) -> Observations:
        """What was gathered so far, from at least one batch.

        Raises:
            ConfigError: If a logit or feature is not finite, as of a run that diverged.
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
        student, stages = _record(self._student, model.student, inputs)
        given = dict(student=student)
        if model.neck is not None:
            output = model.neck(list(stages.values()))
            given |= dict(fused=output.fused_logits, fusion_weights=output.fusion_weights)
        images = model.teacher.resize(model.to_teacher(inputs))
        teacher, teacher_stages = _record(self._teacher, model.teacher.model, images)
        given['teacher'] = teacher
        for side, recorded in (('student', stages), ('teacher', teacher_stages)):
            given |= {f'{side}.{name}': _pool(feature) for name, feature in recorded.items()}
        return given


def _stage_recorder(recorder: FeatureRecorder) -> FeatureRecorder:
    """A recorder of the same stages, which may look for them where nobody did yet."""
    taps = recorder.taps
    if isinstance(taps, dict):
        names = sorted(filter(_STAGE.fullmatch, taps), key=lambda name: int(name[len('stage') :]))
        taps = {name: taps[name] for name in names}
    return FeatureRecorder(taps or 'stages')


def _record(
    recorder: FeatureRecorder, model: nn.Module, images: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """A model's logits and its stages, each a map (B, C, H, W) or tokens (B, N, C)."""
    try:
        recorder.find_stages(model, images.shape[1:])
    except ConfigError:
        return model.forward(images, mode='tensor'), {}
    with recorder(model) as record:
        # Not through a compiled call, which runs no hooks.
        logits = model.forward(images, mode='tensor')
    size = tuple(images.shape[-2:])
    return logits, {
        name: stage_layout(model, name, record[name], size).arrange(record[name])
        for name in recorder.taps
    }


def _pool(feature: Tensor) -> Tensor:
    return feature.flatten(2).mean(2) if feature.dim() == 4 else feature.mean(1)
