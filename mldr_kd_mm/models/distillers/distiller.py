"""The Distiller: a student and its frozen teacher as one model for mmengine's Runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import NoneType
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import BaseClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.models.builder import build_classifier, build_neck, nest
from mldr_kd_mm.models.data_preprocessor import with_statistics
from mldr_kd_mm.models.distillers.batch import check_labels, read_labels, refuse_one_image
from mldr_kd_mm.models.distillers.ensemble import build_teacher, read_teachers
from mldr_kd_mm.models.distillers.loss_entry import build_entries
from mldr_kd_mm.models.distillers.student import Student
from mldr_kd_mm.models.distillers.teacher import Member
from mldr_kd_mm.models.necks.outputs import FUSION_WEIGHTS, check_outputs, named_outputs
from mldr_kd_mm.models.taps.recorder import build_recorder
from mldr_kd_mm.models.taps.stages import DISTILLATION_LOGITS, STAGES, VECTORS, fixed_size
from mldr_kd_mm.models.taps.tapped_model import Probe
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_config,
    check_not_negative,
    check_sizes,
    check_type,
    checked_arguments,
    named,
)

# Arguments of torch.compile that select CUDA graphs.
_CUDA_GRAPHS = dict(mode=('reduce-overhead', 'max-autotune'), backend=('cudagraphs',))


@MODELS.register_module()
class Distiller(BaseClassifier):
    """Train a student with its own loss and with losses that compare it with a frozen teacher.

    The Runner sees the student: validation, prediction and ``extract_feat`` run the student alone,
    and ``with_neck``, ``head`` and ``get_layer_depth`` are the student's. Checkpoints hold the
    student, the neck and the parameters of the losses, never the teacher. The student starts from
    exactly the weights that it would have without a teacher under the same seed.

    Each model gets the batch normalised as its own config specifies: ``data_preprocessor`` holds
    what both share, and a model's own ``data_preprocessor`` takes precedence. A teacher without one
    gets the statistics that its weights were trained with, if they are known
    (:func:`~mldr_kd_mm.models.data_preprocessor.own_statistics`). Both models see the
    student's mixup and CutMix (``train_cfg=dict(augments=...)``).

    The losses read tensors by name: ``logits``, ``feature`` (penultimate), the taps of the
    recorders, and the outputs of the neck, such as ``stage_logits`` and ``fused_logits``. The log
    has ``loss``, the sum that is optimised; its terms ``loss_student`` (of the student's own head)
    and ``loss_<name>_<head>`` for each entry of ``losses``; and ``fusion_stage1`` ..., the mean
    weights of the neck's fusion, if it has any.

    A student without a head (an ImageClassifier with ``head=None``, a model of timm with
    ``num_classes=0``) is trained by the losses alone. They read its stages, other taps and
    ``feature``, its output. The teacher needs no head either, unless a loss reads its ``logits``.

    Images without a label (:class:`~mldr_kd_mm.datasets.UnlabeledFolder`) are compared with the
    teacher's tensors only: the student's own loss is the mean over the labelled images.

    A student with a distillation token (timm's ``deit_*_distilled_*``, LeViT and others with two
    heads) predicts the mean of its heads. If a loss reads ``distillation_logits``, the second
    head's, the student's own loss and ``logits`` in training are those of the class head alone.
    Otherwise they are the mean, so that both heads are trained.

    Several teachers are a list. Then ``logits`` of the teacher is the logarithm of the mean of
    their class probabilities, and ``teacher1.logits``, ``teacher2.feature``, ``teacher1.stage3``,
    ... are the tensors of each. The other arguments about the teacher, ``teacher_*``, are lists
    with one value for each, or one value for all.

    Args:
        teacher: Config of an mmpretrain classifier, or a built one, which is frozen and keeps its
            weights and data preprocessor; or a list of them.
        student: Config of an mmpretrain classifier.
        losses: A list of dicts, each with the arguments of a
            :class:`mldr_kd_mm.models.distillers.loss_entry.LossEntry`.
        teacher_checkpoint: Path or URL of the teacher's weights, which must be complete. None: the
            teacher's own config initialises it (``init_cfg``, or timm's ``pretrained=True``), or it
            is built and has its weights.
        teacher_weights: Weights of several teachers in the mean of their probabilities,
            non-negative; divided by their sum. None: equal weights.
        student_loss_weight: Factor of the student's own loss, at least 0.
        teacher_recorder: Config of the teacher's :class:`FeatureRecorder`.
        student_recorder: Config of the student's :class:`FeatureRecorder`.
        neck: Config of a neck, for example ``dict(type='MSDFNeck')``, see
            :mod:`mldr_kd_mm.models.necks`. Widths, token grids and the number of classes come from
            a run of the student on an empty image, unless the config sets them.
        input_size: (3, H, W) of the student's images. None: the size that the student's config
            fixes (``img_size``), or 224 x 224.
        teacher_input_size: (3, H, W) of the teacher's images. None: the size that the teacher's
            config fixes, or that of the batch.
        data_preprocessor: Arguments of mmpretrain's ClsDataPreprocessor.
        teacher_precision: ``fp32``, ``bf16`` or ``fp16``. None: the student's precision, which is
            half precision under ``--amp``.
        teacher_compile: Whether to compile the teacher, or a dict of arguments for
            ``torch.compile``. Requires that the losses read only its logits.
        student_compile: Whether to compile the student's network, or a dict of arguments.
        losses_compile: Whether to compile the neck and the losses, or a dict of arguments. With
            ``dict(mode='reduce-overhead')`` each of the three is replayed as a CUDA graph.

    Raises:
        MissingFileError: If the teacher's checkpoint does not exist.
        ConfigError: If a part of the config is invalid, or the parts do not fit each other.
    """

    @checked_arguments
    def __init__(
        self,
        teacher: dict | BaseClassifier | Sequence[dict | BaseClassifier],
        student: dict,
        losses: Sequence[dict],
        teacher_checkpoint: str | Sequence[str | None] | None = None,
        teacher_recorder: dict | Sequence[dict | None] | None = None,
        student_recorder: dict | None = None,
        neck: dict | None = None,
        input_size: Sequence[int] | None = None,
        teacher_input_size: Sequence[int] | Sequence[Sequence[int] | None] | None = None,
        data_preprocessor: dict | None = None,
        teacher_precision: str | Sequence[str | None] | None = None,
        teacher_compile: bool | dict | Sequence[bool | dict] = False,
        student_compile: bool | dict = False,
        losses_compile: bool | dict = False,
        teacher_weights: Sequence[float] | None = None,
        student_loss_weight: float = 1.0,
    ) -> None:
        teachers = read_teachers(
            teacher,
            teacher_checkpoint=teacher_checkpoint,
            teacher_recorder=teacher_recorder,
            teacher_input_size=teacher_input_size,
            teacher_precision=teacher_precision,
            teacher_compile=teacher_compile,
        )
        check_config(student=student, **_given(neck=neck, student_recorder=student_recorder))
        check_sizes(3, **_given(input_size=input_size))
        check_not_negative(student_loss_weight=student_loss_weight)
        check_type('losses', losses, 'a list of dicts', list, tuple)
        check_type('data_preprocessor', data_preprocessor, 'a dict', dict, NoneType)
        of_network = dict(student_compile=student_compile, losses_compile=losses_compile)
        for field, options in of_network.items():
            check_type(field, options, 'True, False or a dict', bool, dict)

        shared = data_preprocessor or {}
        with named('student'):
            student_model = build_classifier(with_statistics('student', student, shared))
        super().__init__(data_preprocessor=student_model.data_preprocessor)
        self.student = student_model
        nest(self.student)
        self._compile = [
            *(('teacher_compile', config.compile) for config in teachers),
            *of_network.items(),
        ]
        self._losses_compile = losses_compile
        self._compiled: Callable[..., dict[str, Tensor]] | None = None
        self.distillation_stopped = False  # StopDistillHook sets it.
        self.student_loss_weight = student_loss_weight

        with _own_rng(self):
            recorder = build_recorder(student_recorder, 'student_recorder')
            self.tapped_student = Student(self.student, recorder)
            self.teacher = build_teacher(teachers, teacher_weights, shared, self.data_preprocessor)
            self.losses = build_entries(losses)
            size = input_size or (3, *(fixed_size(self.student) or (224, 224)))
            self._connect(tuple(size), neck)
            trains_second_head = any(e.weights.get(DISTILLATION_LOGITS, 0) for e in self.losses)
            self.tapped_student.separate_heads(trains_second_head)

        for config, (_, each, names) in zip(teachers, self.teachers, strict=True):
            if config.compile is not False:
                with named('teacher_compile'):
                    each.compile(names, **_options(config.compile))
        if student_compile is not False:
            self.tapped_student.compile(**_options(student_compile))

    def forward(
        self,
        inputs: Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Run the student, and in mode ``loss`` the teacher too.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.
            data_samples: Labels of the batch, needed in mode ``loss``.
            mode: ``tensor``, ``predict`` or ``loss``, as in mmpretrain's classifiers.

        Returns:
            The student's logits (B, C), its predictions, or a dict of losses.

        Raises:
            ConfigError: If a student without a head is to predict.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def predict(
        self, inputs: Tensor, data_samples: list[DataSample] | None = None, **kwargs: Any
    ) -> list[DataSample]:
        """Predict with the student; see ``predict`` of its class.

        Raises:
            ConfigError: If it has no head.
        """
        if not self.tapped_student.has_head:
            raise ConfigError(
                "student: has no head and cannot predict; set val_cfg=dict(type='KNNLoop'), or "
                'val_dataloader, val_cfg and val_evaluator to None'
            )
        return self.student.predict(inputs, data_samples, **kwargs)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the student's ``feature`` (B, D) of images preprocessed for the student."""
        return self.tapped_student(inputs, ['feature'])['feature']

    @property
    def with_neck(self) -> bool:
        """Whether the student has a neck; ``neck`` is that of the distillation."""
        return self.student.with_neck

    @property
    def with_head(self) -> bool:
        """Whether the student has a head."""
        return self.student.with_head

    @property
    def head(self) -> nn.Module | None:
        """The part of the student that has its ``loss_module``: its head, or the student.

        mmpretrain's SwitchRecipeHook replaces the loss there.
        """
        return getattr(self.student, 'head', self.student)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Return the depth of a parameter's layer and the largest depth.

        mmpretrain's layer-wise learning-rate decay calls it. The neck and the losses have the depth
        of the student's head.
        """
        return self.student.get_layer_depth(param_name.removeprefix('student.'))

    def extract_feat(self, inputs: Tensor, **kwargs: Any) -> Any:
        """Return the student's features; see ``extract_feat`` of its class."""
        return self.student.extract_feat(inputs, **kwargs)

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the student's own loss and the losses that compare it with the teacher.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.
            data_samples: Labels of the batch.

        Returns:
            Name -> scalar. mmengine sums those with ``loss`` in their name.

        Raises:
            ConfigError: If a logit of the teacher is not finite, or a BatchNorm cannot be trained
                on a batch of one image.
        """
        if self.distillation_stopped:
            return self._loss_alone(inputs, data_samples)
        self._start_cuda_graphs(inputs.is_cuda)
        teacher = self.teacher.read(inputs, self._teacher_names, data_samples)
        with refuse_one_image(len(inputs)):
            losses, student = self.tapped_student.loss(inputs, data_samples, self._student_names)
            losses = _weigh(losses, self.student_loss_weight)
            needs = {name for entry in self.losses for name in entry.needs}
            labels = read_labels(data_samples, needs)
            compare = self._compiled_compare() or Distiller._compare
            losses |= compare(self, student, teacher, labels)
        return losses

    def check_needs_no_label(self, source: str, some_have_one: bool) -> None:
        """Refuse losses that need a label for each image, or a head that only labels train.

        Args:
            source: The field and type of the data set that gives none, for the error.
            some_have_one: Whether other images of the training set have labels.

        Raises:
            ConfigError: If there is such a loss or head.
        """
        for entry in self.losses:
            entry.check_needs_no_label(source)
            if entry.weights.get(DISTILLATION_LOGITS) and not some_have_one:
                raise ConfigError(
                    f'losses: {entry.name}: student={DISTILLATION_LOGITS!r}: labels must train the '
                    f"student's class head then, and {source} gives none; add labelled images, or "
                    "compare student='logits'"
                )

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the losses as mmengine does, in fewer operations.

        mmengine logs the sum as ``loss``, which the student's own loss of that name would replace.
        The log names that one ``loss_student``.

        Args:
            losses: Name -> scalar, see :meth:`loss`.

        Returns:
            The sum of those with ``loss`` in their name, and all values for the log.
        """
        own = dict(loss='loss_student')
        losses = {own.get(name, name): value for name, value in losses.items()}
        if not all(isinstance(value, Tensor) for value in losses.values()):
            return super().parse_losses(losses)  # A student's own loss may be a list.
        values = {name: value.mean() if value.dim() else value for name, value in losses.items()}
        total = torch.stack([value for name, value in values.items() if 'loss' in name]).sum()
        return total, dict(loss=total) | values

    def record_student(self, inputs: Tensor) -> dict[str, Tensor]:
        """Run the student and the neck.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.

        Returns:
            Name -> tensor, for each tensor of both that the losses read.
        """
        record = self.tapped_student(inputs, self._student_names)
        return record | self.run_neck(record)

    def run_neck(self, record: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the neck on recorded tensors of the student.

        Args:
            record: Name -> tensor, with all that the neck reads.

        Returns:
            Name -> output of the neck; empty without a neck.
        """
        if self.neck is None:
            return {}
        return named_outputs(self.neck([record[stage] for stage in self.neck_inputs]))

    def _compare(
        self, student: dict[str, Tensor], teacher: dict[str, Tensor], labels: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run the neck, and compare student and teacher: name -> scalar for the log."""
        losses: dict[str, Tensor] = {}
        outputs = self.run_neck(student)
        if FUSION_WEIGHTS in outputs:
            weights = outputs[FUSION_WEIGHTS].detach().mean((0, 2))
            losses |= {f'fusion_{s}': w for s, w in zip(self.neck_inputs, weights, strict=True)}
        student = student | outputs
        for entry in self.losses:
            losses |= entry(student, teacher, **labels)
        return losses

    def _compiled_compare(self) -> Callable[..., dict[str, Tensor]] | None:
        """Return the compiled :meth:`_compare`; None if ``losses_compile`` is False."""
        options = self._losses_compile
        if self._compiled is None and options is not False:
            self._compiled = torch.compile(Distiller._compare, **_options(options))
        return self._compiled

    def _start_cuda_graphs(self, on_gpu: bool) -> None:
        """Begin a step of the CUDA graphs, if there are any.

        Raises:
            ConfigError: If they are requested without a GPU.
        """
        graphs = [
            (field, options)
            for field, options in self._compile
            if any(_options(options).get(name) in _CUDA_GRAPHS[name] for name in _CUDA_GRAPHS)
        ]
        if graphs and not on_gpu:
            field, options = graphs[0]
            raise ConfigError(
                f'{field}={options!r}: must be True or False without a GPU, as it uses CUDA graphs'
            )
        if graphs:
            # They may overwrite the tensors of the last step.
            torch.compiler.cudagraph_mark_step_begin()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out compiled code, which cannot be pickled."""
        return super().__getstate__() | dict(_compiled=None)

    @property
    def teachers(self) -> list[Member]:
        """Each teacher, with the tensors that the losses read of it."""
        return self.teacher.members(self._teacher_names)

    def run_teacher(self, inputs: Tensor) -> dict[str, Tensor]:
        """Run the teacher on a batch that was preprocessed for the student.

        Args:
            inputs: Images (B, 3, H, W), preprocessed for the student.

        Returns:
            Name -> tensor (B, ...), for each tensor of the teacher that the losses read.
        """
        record = self.teacher(inputs, self._teacher_names)
        return {name: record[name] for name in self._teacher_names}

    def predict_teacher(self, inputs: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """Predict with the teacher, for a batch that was preprocessed for the student.

        Returns:
            The samples, of several teachers with the prediction of all together.
        """
        *_, (_, samples) = self.teacher.predictions(inputs, data_samples)
        return samples

    def init_weights(self) -> None:
        """Initialise the student exactly as it would be alone, then the neck and the losses."""
        self.student.init_weights()
        with _own_rng(self):
            self.teacher.init_weights()
            losses = (loss for entry in self.losses for loss in entry.losses)
            for module in (self.neck, *losses):
                if getattr(module, 'init_cfg', None):
                    module.init_weights()

    def _apply(self, fn, *args, **kwargs):
        """Convert the teacher too, though it is not a child module."""
        self.teacher = self.teacher.convert(fn)
        return super()._apply(fn, *args, **kwargs)

    def _loss_alone(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the student's own loss, and give what it leaves out gradients of 0.

        DistributedDataParallel waits for a gradient of each parameter.
        """
        self.tapped_student.separate_heads(False)  # The labels train both heads from now on.
        with refuse_one_image(len(inputs)):
            losses = self.tapped_student.own_loss(inputs, data_samples)
        losses = _weigh(losses, self.student_loss_weight)
        unused = [
            parameter.flatten()[:0].sum()
            for module in (self.neck, self.losses)
            if module is not None
            for parameter in module.parameters()
        ]
        return losses | (dict(loss_stopped=sum(unused)) if unused else {})

    def _connect(self, size: Sequence[int], neck: dict | None) -> None:
        """Find the tensors to record, and build the neck and the losses for them."""
        student, has_neck = self.tapped_student, neck is not None
        names = self._find_names(size, has_neck)
        self.neck_inputs, self._student_names, self._teacher_names = names
        of_student, of_teacher = self._probe(size, neck)
        with_head = [probe for probe in (of_student, of_teacher) if 'logits' in probe.tensors]
        self.num_classes = with_head[0].width('logits') if with_head else None
        self.neck = None
        if has_neck:
            self.neck, outputs = build_neck(neck, self.neck_inputs, of_student, of_teacher)
            check_outputs(outputs, len(self.neck_inputs), student.names)
            for entry in self.losses:
                entry.check_names((*student.names, *outputs), self.teacher.names)
            of_student = of_student._replace(tensors=of_student.tensors | outputs)
        for entry in self.losses:
            entry.build(of_student, of_teacher)
            if not student.predicts_one_class:
                entry.check_needs_no_class(type(self.student.head).__name__)
        self.data_preprocessor.register_forward_pre_hook(
            partial(check_labels, num_classes=self.num_classes)
        )

    def _find_names(
        self, size: Sequence[int], has_neck: bool
    ) -> tuple[list[str], list[str], list[str]]:
        """Find the stages of both models, and check the names that the losses read.

        Args:
            size: (3, H, W) of the student's images.
            has_neck: Whether a neck reads the student's stages.

        Returns:
            The stages or other taps that the neck reads, and the tensors to record of the student
            and of the teacher.
        """
        student = {name for entry in self.losses for name in entry.reads('student')}
        teacher = {name for entry in self.losses for name in entry.reads('teacher')}
        stages = []
        if has_neck or student & {*STAGES}:
            stages = self.tapped_student.find_stages(size)
        self.teacher.find_stages_in(teacher, size)
        recorder = self.tapped_student.recorder
        if has_neck:
            if not self.tapped_student.has_head:
                raise ConfigError(
                    'neck: must be None, as the student has no head and thus no number of classes'
                )
            stages = stages or [name for name in recorder.names if name not in VECTORS]
            if not stages:
                raise ConfigError(
                    f'student_recorder: taps={recorder.taps!r}: the neck needs taps; '
                    f"taps='stages' finds {', '.join(STAGES)}"
                )
        # The names of the neck's outputs are not known yet.
        unknown = student if has_neck else ()
        available = self.tapped_student.names
        for entry in self.losses:
            entry.check_names((*available, *unknown), self.teacher.names)
        for label, _, own in self.teacher.members(teacher):
            if self.losses and not own:
                raise ConfigError(
                    f'{label}: no loss reads it; name one of its tensors in a loss, such as '
                    f"teacher='{label}.logits', or leave it out"
                )
        stages = stages if has_neck else []
        recorded = {*stages, *({'logits', *student} & {*available})}
        return stages, sorted(recorded), sorted(teacher)

    def _probe(self, size: Sequence[int], neck: dict | None) -> tuple[Probe, Probe]:
        """Run the student and the teacher once on an empty image.

        Args:
            size: (3, H, W) of the student's image.
            neck: Config of the neck.

        Returns:
            The tensors of the student and of the teacher.
        """
        with named(f'input_size={size}: student'):
            self.tapped_student.find_logits(size)
            student = self.tapped_student.probe(self._student_names, size, self.neck_inputs)
        for name, layout in student.layouts.items():
            tap = self.tapped_student.recorder.taps[name]
            print_log(f'student: {name}={tap!r}: {layout}', 'current')
        names = list(self._teacher_names)
        if (
            neck
            and neck.get('project_dim') is None
            and student.layouts[self.neck_inputs[-1]].is_map
        ):
            # The neck may take its width from these features.
            names += [name for name in self.teacher.names if name.rpartition('.')[2] == 'feature']
        with named('teacher'):
            teacher = self.teacher.probe(names, size)
        if self.tapped_student.has_head and 'logits' in self._teacher_names:
            classes = student.width('logits'), teacher.width('logits')
            if classes[0] != classes[1]:
                raise ConfigError(
                    f'num_classes: the teacher has {classes[1]}, the student {classes[0]}; must be '
                    'equal to compare logits'
                )
        return student, teacher


def _given(**fields: Any) -> dict[str, Any]:
    return {field: value for field, value in fields.items() if value is not None}


def _weigh(losses: dict[str, Any], weight: float) -> dict[str, Any]:
    """Multiply a student's own losses, not other values for the log, by a weight."""
    if weight == 1:
        return losses
    return {
        name: value
        if 'loss' not in name
        else [weight * each for each in value]
        if isinstance(value, list)
        else weight * value
        for name, value in losses.items()
    }


def _options(compiled: bool | dict) -> dict[str, Any]:
    """Return the arguments for ``torch.compile``."""
    return compiled if isinstance(compiled, dict) else {}


@contextmanager
def _own_rng(model: nn.Module) -> Iterator[None]:
    """Leave the random numbers that the student draws afterwards unchanged."""
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices):
        yield
