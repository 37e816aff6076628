"""The Distiller, the only model of ours that mmengine's Runner sees."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import NoneType
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import BaseClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.models.builder import build_classifier, nest
from mldr_kd_mm.models.data_preprocessor import Renormalize
from mldr_kd_mm.models.distillers.loss_entry import STAGE_LOGITS, Comparison, Probe
from mldr_kd_mm.models.distillers.teacher import Teacher
from mldr_kd_mm.models.distillers.teacher_cache import TeacherCache
from mldr_kd_mm.models.taps.layout import Layout
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.stages import STAGES, fixed_size, stage_layout
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.structures.view import get_views
from mldr_kd_mm.utils.errors import ConfigError, check_config, check_sizes, checked_arguments, named

_NECK_OUTPUTS = (STAGE_LOGITS, 'fused_logits')
_FUSION_WEIGHTS = 'fusion_weights'
_STAGE = re.compile(r'stage\d+')


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
        losses: Each a dict of the arguments of
                :class:`mldr_kd_mm.models.distillers.loss_entry.Comparison`.
        teacher_checkpoint: Path or URL of the teacher's weights; all of them must be there. None:
            what the teacher's own config gives (``init_cfg``, or timm's ``pretrained=True``).
        teacher_recorder: Config of the teacher's :class:`FeatureRecorder`.
        student_recorder: Config of the student's.
        neck: Config of a neck, for instance ``dict(type='MSDFNeck')``. Its widths, its grids of
            tokens and its number of classes are found by running the student once, unless they are
            given.
        input_size: (3, H, W) of the student's images. None: what the student's config fixes
            (``img_size``), else 224 x 224.
        teacher_input_size: (3, H, W) of the teacher's images. None: what the teacher's config
            fixes, else that of the batch.
        teacher_precision: ``fp32``, ``bf16`` or ``fp16``. None: that of the student, half precision
            under ``--amp``.
        teacher_compile: Whether to compile the teacher, or a dict of ``torch.compile``'s arguments.
            Only where the losses read no more than its logits.
        data_preprocessor: What mmpretrain's ClsDataPreprocessor takes.

    Raises:
        FileNotFoundError: If the teacher's checkpoint does not exist.
        ConfigError: If a part of the config is wrong, or the parts do not fit each other.
    """

    @checked_arguments
    def __init__(
        self,
        teacher: dict,
        student: dict,
        losses: Sequence[dict],
        teacher_checkpoint: str | None = None,
        teacher_recorder: dict | None = None,
        student_recorder: dict | None = None,
        neck: dict | None = None,
        input_size: Sequence[int] | None = None,
        teacher_input_size: Sequence[int] | None = None,
        data_preprocessor: dict | None = None,
        teacher_precision: str | None = None,
        teacher_compile: bool | dict = False,
    ) -> None:
        recorders = _given(teacher_recorder=teacher_recorder, student_recorder=student_recorder)
        check_config(teacher=teacher, student=student, **_given(neck=neck), **recorders)
        check_sizes(3, **_given(input_size=input_size, teacher_input_size=teacher_input_size))
        _check_kind('losses', losses, 'a list of dicts', list, tuple)
        _check_kind('teacher_checkpoint', teacher_checkpoint, 'a path or URL', str, NoneType)
        _check_kind('data_preprocessor', data_preprocessor, 'a dict', dict, NoneType)
        _check_kind('teacher_compile', teacher_compile, 'True, False or a dict', bool, dict)
        shared = data_preprocessor or {}
        with named('student'):
            student_module = build_classifier(_with_preprocessor(student, shared))
        super().__init__(data_preprocessor=student_module.data_preprocessor)
        self.student = student_module
        nest(self.student)
        # A TeacherCacheHook sets it when training begins.
        self.teacher_cache: TeacherCache | None = None

        with _own_rng(self):
            self.student_recorder = _recorder('student_recorder', student_recorder)
            recorder = _recorder('teacher_recorder', teacher_recorder)
            with named('teacher'):
                self.teacher = Teacher(
                    _with_preprocessor(teacher, shared),
                    teacher_checkpoint,
                    recorder,
                    teacher_input_size and teacher_input_size[1:],
                    teacher_precision,
                )
            with named('data_preprocessor'):
                self.to_teacher = Renormalize(
                    self.data_preprocessor, self.teacher.model.data_preprocessor
                )
            self.losses = nn.ModuleList(_comparison(loss) for loss in losses)
            _check_unique([comparison.name for comparison in self.losses])
            size = tuple(input_size or (3, *(fixed_size(self.student) or (224, 224))))
            if neck or any(name in STAGES for loss in self.losses for name in loss.student):
                self.student_recorder.find_stages(self.student, size)
            self._teacher_names = sorted({name for loss in self.losses for name in loss.teacher})
            if any(name in STAGES for name in self._teacher_names):
                teacher_size = (3, *(self.teacher.size or size[1:]))
                self.teacher.recorder.find_stages(self.teacher.model, teacher_size)
            self._stages = _stage_names(self.student_recorder) if neck else []
            self._student_names = self._names_of_student(with_neck=neck is not None)
            student_probe = self._probe_student(size)
            teacher_probe = self._probe_teacher(size, neck)
            num_classes = student_probe['logits'].shape[-1]
            if 'logits' in self._teacher_names:
                _check_classes(num_classes, teacher_probe['logits'].shape[-1])
            self.neck = self._build_neck(neck, student_probe, teacher_probe) if neck else None
            probes = (
                Probe(student_probe, self._student_layouts),
                Probe(teacher_probe, self._teacher_layouts),
            )
            for comparison in self.losses:
                comparison.build(*probes)
        if teacher_compile:
            options = teacher_compile if isinstance(teacher_compile, dict) else {}
            with named('teacher_compile'):
                self.teacher.compile(self._teacher_names, **options)
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
            ConfigError: If a logit of the teacher is not finite, or a batch of one image meets a
                BatchNorm that cannot be trained on it.
        """
        teacher = self._teach(inputs, data_samples)
        with _refuse_one_image(inputs):
            with self.student_recorder(self.student, self._student_names) as student:
                losses = self.student.loss(inputs, data_samples)
            _arrange(student, self._student_layouts)
            if self.neck is not None:
                student |= self._run_neck(self.neck, student)
                weights = student[_FUSION_WEIGHTS].detach().mean((0, 2))
                losses |= {f'fusion_{s}': w for s, w in zip(self._stages, weights, strict=True)}
            labels = self._labels(data_samples)
            for comparison in self.losses:
                losses |= comparison(student, teacher, **labels)
        return losses

    def run_teacher(self, inputs: Tensor) -> dict[str, Tensor]:
        """What the losses read of the teacher, for a batch that was preprocessed for the student.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.

        Returns:
            Name -> tensor (B, ...).
        """
        record = self.teacher(self.to_teacher(inputs), self._teacher_names)
        _arrange(record, self._teacher_layouts)
        return {name: record[name] for name in self._teacher_names}

    def predict_teacher(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """The teacher's predictions of a batch that was preprocessed for the student."""
        return self.teacher.predict(self.to_teacher(inputs), data_samples)

    def _teach(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """What the losses read of the teacher, run or read from its cache."""
        if self.teacher_cache is None:
            return self.run_teacher(inputs)
        views = get_views(data_samples)
        if views is None:
            raise ConfigError(
                'teacher_cache: the batch has no views: train_dataloader.sampler must be a '
                "'ViewSampler', and the pipeline must end with PackInputs"
            )
        return self.teacher_cache(views, inputs.device, partial(self.run_teacher, inputs))

    def init_weights(self) -> None:
        """Initialise the student as it would be alone; the neck and losses do not disturb it."""
        self.student.init_weights()
        with _own_rng(self):
            self.teacher.init_weights()
            losses = (loss for comparison in self.losses for loss in comparison.losses)
            for module in (self.neck, *losses):
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
            for name in comparison.teacher:
                if name not in self.teacher.recorder.names:
                    raise ConfigError(
                        f'losses: {comparison.name}: teacher={name!r}: nobody records it; there '
                        f'are: {", ".join(self.teacher.recorder.names)}'
                    )
        return sorted(needed)

    @torch.no_grad()
    def _probe_student(self, input_size: Sequence[int]) -> dict[str, Tensor]:
        """What is recorded of the student for one empty image, and how it lies."""
        with named(f'input_size={tuple(input_size)}: student'):
            image = torch.zeros(1, *input_size)
            self.student.eval()
            with self.student_recorder(self.student, self._student_names) as record:
                self.student(image, mode='tensor')
            self.student.train()
        self._student_layouts = _layouts(self.student, record, image)
        for name, layout in self._student_layouts.items():
            print_log(f'student: {name}={self.student_recorder.taps[name]!r}: {layout}', 'current')
        _arrange(record, self._student_layouts)
        return record

    @torch.no_grad()
    def _probe_teacher(self, input_size: Sequence[int], neck: dict | None) -> dict[str, Tensor]:
        """What is recorded of the teacher for that image, and how it lies."""
        names = set(self._teacher_names)
        if neck and neck.get('project_dim') is None and self._ends_in_a_map:
            names.add('feature')
        image = torch.zeros(1, *input_size)
        with named('teacher'):
            record = self.teacher(image, names)
        self._teacher_layouts = _layouts(self.teacher.model, record, self.teacher.resize(image))
        _arrange(record, self._teacher_layouts)
        return record

    @property
    def _ends_in_a_map(self) -> bool:
        """Whether the paper's rule for the neck's width applies: it is made for feature maps."""
        return self._student_layouts[self._stages[-1]].is_map

    @torch.no_grad()
    def _build_neck(
        self, config: dict, student: dict[str, Tensor], teacher: dict[str, Tensor]
    ) -> nn.Module:
        """Build the neck for what was probed, and add to the student's what it makes of that."""
        layouts = [self._student_layouts[stage] for stage in self._stages]
        in_channels = [layout.channels for layout in layouts]
        found = dict(in_channels=in_channels, num_classes=student['logits'].shape[-1])
        if not all(layout.is_map for layout in layouts):
            found['grids'] = [None if layout.is_map else layout.grid for layout in layouts]
        if 'feature' in teacher and self._ends_in_a_map:
            found['project_dim'] = max(in_channels[-1], teacher['feature'].shape[1])
        given = {k: value for k, value in config.items() if value is not None or k not in found}
        with named('neck'):
            neck = MODELS.build({**found, **given})
            neck.eval()
            student |= self._run_neck(neck, student)
            neck.train()
        return neck

    def _run_neck(self, neck: nn.Module, student: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a neck makes of the student's stages."""
        return neck([student[stage] for stage in self._stages])._asdict()

    def _labels(self, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """What the losses need to know of the batch beside the models' tensors."""
        read = {'target': _target, 'index': _index}
        needed = {name for comparison in self.losses for name in comparison.needs}
        return {name: read[name](data_samples) for name in needed}


def _layouts(model: nn.Module, record: dict[str, Tensor], image: Tensor) -> dict[str, Layout]:
    """How the recorded stages of a model lie in their tensors."""
    size = tuple(image.shape[-2:])
    return {
        name: stage_layout(model, name, feature, size)
        for name, feature in record.items()
        if _STAGE.fullmatch(name)
    }


def _arrange(record: dict[str, Tensor], layouts: dict[str, Layout]) -> None:
    """Bring what was recorded to one form: maps, tokens or (B, D), whatever the model has."""
    for name, layout in layouts.items():
        record[name] = layout.arrange(record[name])
    # A few classifiers are 1x1 convolutions.
    if 'feature' in record:
        record['feature'] = record['feature'].flatten(1)


def _given(**fields: Any) -> dict[str, Any]:
    return {field: value for field, value in fields.items() if value is not None}


def _check_kind(field: str, value: Any, right: str, *kinds: type) -> None:
    if not isinstance(value, kinds):
        raise ConfigError(f'{field}={value!r}: must be {right}')


def _recorder(field: str, config: dict | None) -> FeatureRecorder:
    with named(field):
        recorder = MODELS.build(config or dict(type='FeatureRecorder'))
    if not isinstance(recorder, FeatureRecorder):
        raise ConfigError(f'{field}={config!r}: must be the config of a FeatureRecorder')
    return recorder


def _with_preprocessor(classifier: dict, shared: dict) -> dict:
    own = classifier.get('data_preprocessor') or {}
    _check_kind('data_preprocessor', own, 'a dict', dict)
    return {**classifier, 'data_preprocessor': {**shared, **own}}


def _check_classes(student: int, teacher: int) -> None:
    if student != teacher:
        raise ConfigError(
            f'num_classes: the teacher has {teacher}, the student {student}: '
            'must be the same to compare logits'
        )


def _comparison(config: dict) -> Comparison:
    if not isinstance(config, dict) or not isinstance(config.get('loss'), dict):
        raise ConfigError(
            f'losses: {config!r}: must have loss=dict(type=...), as in '
            "dict(loss=dict(type='KDLoss'), name='kd')"
        )
    return Comparison(**config)


def _target(data_samples: list[DataSample]) -> Tensor:
    """Labels (B,), or (B, C) where mixup or the like made them soft."""
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    return torch.cat([sample.gt_label for sample in data_samples])


def _index(data_samples: list[DataSample]) -> Tensor:
    """The samples' numbers in the training set (B,), on the CPU."""
    if 'sample_idx' not in data_samples[0]:
        raise ConfigError(
            "PackInputs: meta_keys: must have 'sample_idx', which a loss asks for as index"
        )
    return torch.tensor([sample.sample_idx for sample in data_samples])


def _check_unique(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'losses: name={name!r}: is there twice: each must have its own name')


def _stage_names(recorder: FeatureRecorder) -> list[str]:
    names = [name for name in recorder.names if _STAGE.fullmatch(name)]
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


@contextmanager
def _refuse_one_image(inputs: Tensor) -> Iterator[None]:
    """Say what torch means where BatchNorm has one value a channel."""
    try:
        yield
    except ValueError as error:
        if len(inputs) > 1 or 'more than 1 value per channel' not in str(error):
            raise
        raise ConfigError(
            'batch_size=1: BatchNorm cannot be trained on one image: must be 2 or more, and '
            'train_dataloader.drop_last=True leaves out a last batch of one'
        ) from error


def _check_labels(_: nn.Module, args: tuple, num_classes: int) -> None:
    """Refuse labels out of range while they are on the host, where it costs no synchronisation."""
    for sample in args[0].get('data_samples') or ():
        labels = sample.get('gt_label') if isinstance(sample, DataSample) else None
        if labels is not None and not ((labels >= 0) & (labels < num_classes)).all():
            raise ConfigError(
                f'gt_label={labels.tolist()}: must be within 0..{num_classes - 1}, as the models '
                f'have {num_classes} classes'
            )
