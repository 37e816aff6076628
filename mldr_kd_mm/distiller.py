"""The Distiller, the only model of ours that mmengine's Runner sees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmpretrain.models import BaseClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.classifiers import build_classifier, nest
from mldr_kd_mm.comparison import STAGE_LOGITS, Comparison
from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.normalization import Renormalize
from mldr_kd_mm.recorder import FeatureRecorder
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.stages import STAGES
from mldr_kd_mm.teacher import Teacher

_NECK_OUTPUTS = (STAGE_LOGITS, 'fused_logits')
_FUSION_WEIGHTS = 'fusion_weights'


@MODELS.register_module()
class Distiller(BaseClassifier):
    """Trains a student with its own loss and with losses that compare it with a frozen teacher.

    Towards the Runner it is the student: validation, prediction and ``extract_feat`` run the
    student alone. Checkpoints hold the student, the neck and the losses' own parameters, never the
    teacher. The student is initialised exactly as it would be alone under the same seed.

    Each model gets the batch as its own config wants it: ``data_preprocessor`` holds what both
    share, and a model's own ``data_preprocessor`` goes before it. mixup and cutmix of the student
    (``train_cfg=dict(augments=...)``) are seen by both.

    The losses read tensors by name: ``logits``, ``feature`` (penultimate), whatever the recorders'
    taps name, and of the student ``stage_logits`` and ``fused_logits`` of the neck. The log has
    ``loss`` (of the student's own head), ``loss_<name>_<head>`` for each comparison, and
    ``fusion_stage1`` ..., the mean weights of the neck's fusion.

    Args:
        teacher: Config of an mmpretrain classifier.
        student: Config of an mmpretrain classifier.
        losses: Each a dict of the arguments of :class:`mldr_kd_mm.comparison.Comparison`.
        teacher_checkpoint: Path or URL of the teacher's weights; all of them must be there. None:
            what the teacher's own config gives (``init_cfg``, or timm's ``pretrained=True``).
        teacher_recorder: Config of the teacher's :class:`FeatureRecorder`.
        student_recorder: Config of the student's.
        neck: Config of a neck, for instance ``dict(type='MSDFNeck')``. Its widths and its number of
            classes are found by running the student once, unless they are given.
        input_size: (3, H, W) of the student's images.
        teacher_input_size: (3, H, W) of the teacher's images. None: what the teacher's config
            declares (``img_size``), else that of the batch.
        data_preprocessor: What mmpretrain's ClsDataPreprocessor takes.

    Raises:
        FileNotFoundError: If the teacher's checkpoint does not exist.
        ConfigError: If the parts of the config do not fit each other.
    """

    def __init__(
        self,
        teacher: dict,
        student: dict,
        losses: Sequence[dict],
        teacher_checkpoint: str | None = None,
        teacher_recorder: dict | None = None,
        student_recorder: dict | None = None,
        neck: dict | None = None,
        input_size: Sequence[int] = (3, 224, 224),
        teacher_input_size: Sequence[int] | None = None,
        data_preprocessor: dict | None = None,
    ) -> None:
        shared = data_preprocessor or {}
        student_module = build_classifier(_with_preprocessor(student, shared))
        super().__init__(data_preprocessor=student_module.data_preprocessor)
        self.student = student_module
        nest(self.student)

        with _own_rng(self):
            default = dict(type='FeatureRecorder')
            self.student_recorder: FeatureRecorder = MODELS.build(student_recorder or default)
            self.teacher = Teacher(
                _with_preprocessor(teacher, shared),
                teacher_checkpoint,
                MODELS.build(teacher_recorder or default),
                teacher_input_size and teacher_input_size[1:],
            )
            self.to_teacher = Renormalize(
                self.data_preprocessor, self.teacher.model.data_preprocessor
            )
            self.losses = nn.ModuleList(Comparison(**loss) for loss in losses)
            _check_unique([comparison.name for comparison in self.losses])
            self._stages = _stage_names(self.student_recorder) if neck else []
            self._teacher_names = sorted({loss.teacher for loss in self.losses})
            self._student_names = self._names_of_student(with_neck=neck is not None)
            find_dim = neck is not None and neck.get('project_dim') is None
            student_probe, teacher_probe = self._probe(input_size, with_feature=find_dim)
            num_classes = student_probe['logits'].shape[-1]
            if 'logits' in self._teacher_names:
                _check_classes(num_classes, teacher_probe['logits'].shape[-1])
            self.neck = self._build_neck(neck, student_probe, teacher_probe) if neck else None
        self.data_preprocessor.register_forward_pre_hook(
            partial(_check_labels, num_classes=num_classes)
        )

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Run the student, and in mode ``loss`` the teacher too.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.
            data_samples: The labels of the batch, needed in mode ``loss``.
            mode: ``tensor``, ``predict`` or ``loss``, as in mmpretrain's classifiers.

        Returns:
            The student's logits, its predictions, or a dict of losses.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def extract_feat(self, inputs: Tensor, **kwargs: Any) -> Any:
        """The student's features; see its ``extract_feat``."""
        return self.student.extract_feat(inputs, **kwargs)

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """The student's own loss and the comparisons with the teacher.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.
            data_samples: The labels of the batch.

        Returns:
            Name -> scalar. mmengine sums those whose name has ``loss`` in it.

        Raises:
            ConfigError: If a logit of the teacher is not finite.
        """
        teacher = self.teacher(self.to_teacher(inputs), self._teacher_names)
        with self.student_recorder(self.student, self._student_names) as student:
            losses = self.student.loss(inputs, data_samples)
        if self.neck is not None:
            student |= self.neck([student[stage] for stage in self._stages])._asdict()
            weights = student[_FUSION_WEIGHTS].detach().mean((0, 2))
            losses |= {f'fusion_{s}': w for s, w in zip(self._stages, weights, strict=True)}
        for comparison in self.losses:
            losses |= comparison(student, teacher)
        return losses

    def predict_teacher(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """The teacher's predictions of a batch that was preprocessed for the student."""
        return self.teacher.predict(self.to_teacher(inputs), data_samples)

    def init_weights(self) -> None:
        """Initialise the student as it would be alone; the neck and losses do not disturb it."""
        self.student.init_weights()
        with _own_rng(self):
            self.teacher.init_weights()
            for module in (self.neck, *(comparison.loss for comparison in self.losses)):
                if getattr(module, 'init_cfg', None):
                    module.init_weights()

    def _apply(self, fn, *args, **kwargs):
        """Let the teacher follow to another device or dtype, though it is no child module."""
        self.teacher.model._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def _names_of_student(self, with_neck: bool) -> list[str]:
        """What must be recorded of the student; an error names what nobody records."""
        recorded = self.student_recorder.names
        needed = {'logits', *self._stages}
        for comparison in self.losses:
            for name in comparison.student:
                if name in _NECK_OUTPUTS and with_neck:
                    continue
                if name not in recorded:
                    there = (*recorded, *(_NECK_OUTPUTS if with_neck else ()))
                    hint = '' if with_neck else "; neck=dict(type='MSDFNeck') gives stage_logits"
                    raise ConfigError(
                        f'losses: {comparison.name}: student={name!r}: nobody records it; '
                        f'there are: {", ".join(there)}{hint}'
                    )
                needed.add(name)
            if comparison.teacher not in self.teacher.recorder.names:
                raise ConfigError(
                    f'losses: {comparison.name}: teacher={comparison.teacher!r}: nobody records '
                    f'it; there are: {", ".join(self.teacher.recorder.names)}'
                )
        return sorted(needed)

    @torch.no_grad()
    def _probe(
        self, input_size: Sequence[int], with_feature: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is recorded of the student and of the teacher for one empty image.

        Args:
            input_size: (3, H, W) of the image.
            with_feature: Whether the teacher's penultimate feature is needed too.
        """
        image = torch.zeros(1, *input_size)
        self.student.eval()
        with self.student_recorder(self.student, self._student_names) as student:
            self.student(image, mode='tensor')
        self.student.train()
        teacher_names = {*self._teacher_names, *(['feature'] if with_feature else [])}
        return student, self.teacher(image, teacher_names)

    @torch.no_grad()
    def _build_neck(
        self, config: dict, student: dict[str, Tensor], teacher: dict[str, Tensor]
    ) -> nn.Module:
        """Build the neck for what was probed, and run it once: it may refuse the features."""
        features = [student[stage] for stage in self._stages]
        in_channels = [feature.shape[1] for feature in features]
        found = dict(in_channels=in_channels, num_classes=student['logits'].shape[-1])
        if 'feature' in teacher:
            found['project_dim'] = max(in_channels[-1], teacher['feature'].shape[-1])
        given = {key: value for key, value in config.items() if value is not None}
        neck = MODELS.build({**found, **given})
        neck.eval()
        neck(features)
        neck.train()
        return neck


def _with_preprocessor(classifier: dict, shared: dict) -> dict:
    own = classifier.get('data_preprocessor') or {}
    return {**classifier, 'data_preprocessor': {**shared, **own}}


def _check_classes(student: int, teacher: int) -> None:
    if student != teacher:
        raise ConfigError(
            f'num_classes: the teacher has {teacher}, the student {student}: '
            'must be the same to compare logits'
        )


def _check_unique(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'losses: name={name!r}: is there twice: each must have its own name')


def _stage_names(recorder: FeatureRecorder) -> list[str]:
    names = [name for name in recorder.names if re.fullmatch(r'stage\d+', name)]
    if not names:
        raise ConfigError(
            f'student_recorder: taps={recorder.taps!r}: the neck needs taps named stage1, stage2, '
            f"...: taps='stages' finds {', '.join(STAGES)}"
        )
    return sorted(names, key=lambda name: int(name.removeprefix('stage')))


@contextmanager
def _own_rng(model: nn.Module) -> Iterator[None]:
    """Draw random numbers without changing what the student draws after it."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices):
        yield


def _check_labels(_: nn.Module, args: tuple, num_classes: int) -> None:
    """Refuse labels out of range while they are on the host, where it costs no synchronisation."""
    for sample in args[0].get('data_samples') or ():
        labels = sample.get('gt_label') if isinstance(sample, DataSample) else None
        if labels is not None and not ((labels >= 0) & (labels < num_classes)).all():
            raise ConfigError(
                f'gt_label={labels.tolist()}: must be within 0..{num_classes - 1}, as the models '
                f'have {num_classes} classes'
            )
