"""An ensemble of frozen teachers, and the fields of a Distiller's config for each."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmpretrain.models import BaseClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.models.data_preprocessor import with_statistics
from mldr_kd_mm.models.distillers.teacher import Member, Predictions, Teacher
from mldr_kd_mm.models.losses.common import at_least_float32
from mldr_kd_mm.models.taps.recorder import build_recorder
from mldr_kd_mm.models.taps.tapped_model import Probe
from mldr_kd_mm.utils.errors import (
    ConfigError,
    are_sizes,
    check_config,
    check_type,
    is_number,
    named,
)


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the logarithm of the weighted mean of class probabilities.

    Args:
        logits: Logits (B, C) of each model.
        weights: Weight of each model, non-negative; their sum is 1.

    Returns:
        (B, C), in float32 or a wider dtype.
    """
    parts = [
        F.log_softmax(at_least_float32(each), -1) + math.log(weight)
        for each, weight in zip(logits, weights, strict=True)
        if weight > 0
    ]
    return torch.stack(parts).logsumexp(0)


class TeacherEnsemble:
    """Several teachers with the interface of one :class:`Teacher`.

    ``logits`` is the logarithm of the mean of the teachers' class probabilities.
    ``teacher1.logits``, ``teacher2.feature``, ``teacher1.stage3``, ... are tensors of one teacher.

    Args:
        teachers: The teachers.
        weights: Weight of each teacher in the mean, non-negative; divided by their sum. None:
            equal weights.

    Raises:
        ConfigError: If the weights are invalid.
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float] | None = None) -> None:
        self.teachers = list(teachers)
        given = [1.0] * len(self.teachers) if weights is None else weights
        is_valid = isinstance(given, (list, tuple)) and len(given) == len(self.teachers)
        if not is_valid or not all(is_number(w) and 0 <= w < math.inf for w in given):
            raise ConfigError(
                f'teacher_weights={weights!r}: must be {len(self.teachers)} non-negative numbers, '
                'one for each teacher'
            )
        if not sum(given) > 0:
            raise ConfigError(f'teacher_weights={weights!r}: at least one must be above 0')
        self.weights = [weight / sum(given) for weight in given]

    @property
    def names(self) -> tuple[str, ...]:
        """All names that can be recorded."""
        own = (f'{label}.{name}' for label, each, _ in self.members() for name in each.names)
        return (*(['logits'] if self.has_head else []), *own)

    @property
    def has_head(self) -> bool:
        """Whether all teachers have a head, and thus ``logits`` together."""
        return all(teacher.has_head for teacher in self.teachers)

    def members(self, names: Collection[str] = ()) -> list[Member]:
        """Return each teacher, with those of its tensors that these names need."""
        members = []
        for number, teacher in enumerate(self.teachers, 1):
            label = f'teacher{number}'
            own = {n.removeprefix(f'{label}.') for n in names if n.startswith(f'{label}.')}
            own |= {'logits'} & {*names}
            members.append(Member(label, teacher, sorted(own)))
        return members

    def __call__(self, images: Tensor, names: Collection[str] = ('logits',)) -> dict[str, Tensor]:
        """Run the teachers; see :meth:`Teacher.__call__`."""
        return self._gather(names, lambda teacher, own: teacher(images, own))

    def read(
        self, images: Tensor, names: Collection[str], data_samples: Sequence[DataSample]
    ) -> dict[str, Tensor]:
        """Read tensors from the caches, or run the teachers; see :meth:`Teacher.read`."""
        return self._gather(names, lambda teacher, own: teacher.read(images, own, data_samples))

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the logits (B, C) of all teachers together; see :func:`mean_logits`."""
        return mean_logits(logits, self.weights)

    def predictions(
        self, images: Tensor, data_samples: list[DataSample], num_classes: int | None = None
    ) -> Iterator[Predictions]:
        """Yield the predictions of each teacher, and then the mean of all if all predict.

        See :meth:`Teacher.predictions`.
        """
        scores = []
        for label, teacher, _ in self.members():
            for _, samples in teacher.predictions(images, data_samples, num_classes):
                yield label, samples
                scores.append(torch.stack([sample.pred_score for sample in samples]))
        if len(scores) < len(self.teachers):
            return
        mean = sum(weight * score for weight, score in zip(self.weights, scores, strict=True))
        for sample, score in zip(samples, mean, strict=True):
            sample.set_pred_score(score).set_pred_label(score.argmax(0, keepdim=True))
        yield 'teacher', samples

    def init_weights(self) -> None:
        """Initialise each teacher; see :meth:`Teacher.init_weights`."""
        for teacher in self.teachers:
            teacher.init_weights()

    def convert(self, function: Callable[[Tensor], Tensor]) -> TeacherEnsemble:
        """Convert the weights of all teachers; see :meth:`Teacher.convert`."""
        converted = copy.copy(self)
        converted.teachers = [teacher.convert(function) for teacher in self.teachers]
        return converted

    def find_stages_in(self, names: Collection[str], input_size: Sequence[int]) -> None:
        """Find the stages of each teacher; see :meth:`Teacher.find_stages_in`."""
        for _, teacher, own in self.members(names):
            teacher.find_stages_in(own, input_size)

    def probe(self, names: Collection[str], input_size: Sequence[int]) -> Probe:
        """Run each teacher once on an empty image; see :meth:`Teacher.probe`.

        Raises:
            ConfigError: If ``logits`` is read and the teachers have different numbers of classes.
        """
        tensors, layouts, classes = {}, {}, {}
        for label, teacher, own in self.members(names):
            probe = teacher.probe(own, input_size)
            tensors |= {f'{label}.{name}': tensor for name, tensor in probe.tensors.items()}
            layouts |= {f'{label}.{name}': layout for name, layout in probe.layouts.items()}
            classes[label] = teacher.num_classes
        if 'logits' in names:
            if len({*classes.values()}) > 1:
                found = ', '.join(f'{label} has {count}' for label, count in classes.items())
                raise ConfigError(
                    f'num_classes: {found}; must be equal for logits, the mean of all teachers; '
                    f'name one of them, such as {label}.logits'
                )
            tensors['logits'] = self._mean(tensors)
        return Probe(tensors, layouts)

    def _gather(
        self, names: Collection[str], run: Callable[[Teacher, list[str]], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        given = {
            f'{label}.{name}': tensor
            for label, teacher, own in self.members(names)
            for name, tensor in (run(teacher, own) if own else {}).items()
        }
        return given | (dict(logits=self._mean(given)) if 'logits' in names else {})

    def _mean(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return self.combine([tensors[f'{label}.logits'] for label, _, _ in self.members()])


class TeacherConfig(NamedTuple):
    """Fields of a Distiller's config for one teacher.

    Attributes:
        field: ``teacher``, or ``teacher[0]`` in a list.
        classifier: Config of the classifier, or a built one.
        checkpoint: Path, URL or ``hf-hub:`` name of the weights.
        recorder: Config of the recorder.
        input_size: (3, H, W) of the images.
        precision: The precision.
        compile: Whether to compile it, or arguments of ``torch.compile``.
    """

    field: str
    classifier: dict | BaseClassifier
    checkpoint: str | None
    recorder: dict | None
    input_size: Sequence[int] | None
    precision: str | None
    compile: bool | dict


def read_teachers(teacher: Any, **fields: Any) -> list[TeacherConfig]:
    """Check the fields of a Distiller's config about its teachers, without building them.

    Args:
        teacher: Config of a classifier, a built one, or a list of them.
        **fields: Value of each other field of :class:`TeacherConfig`, under the name that it has in
            a Distiller. Beside a list of teachers, it is a list with one for each of them, or one
            for all.

    Returns:
        One for each teacher.

    Raises:
        ConfigError: If a value is invalid, or a list has another length.
    """
    is_list = isinstance(teacher, (list, tuple))
    teachers = teacher if is_list else [teacher]
    if not teachers:
        raise ConfigError('teacher=[]: must be a classifier, or a list of at least one')
    values = {f: _each(f, v, len(teachers)) if is_list else [v] for f, v in fields.items()}
    configs = [
        TeacherConfig(f'teacher[{number}]' if is_list else 'teacher', *each)
        for number, each in enumerate(zip(teachers, *values.values(), strict=True))
    ]
    for config in configs:
        _check(config)
    return configs


def build_teacher(
    configs: Sequence[TeacherConfig],
    weights: Sequence[float] | None,
    shared: dict[str, Any],
    preprocessor: nn.Module,
) -> Teacher | TeacherEnsemble:
    """Build a teacher, or an ensemble of several.

    Args:
        configs: Fields of each teacher.
        weights: Weights of the ensemble.
        shared: Config of the data preprocessor that all models share.
        preprocessor: The student's data preprocessor, through which the images go.

    Raises:
        MissingFileError: If a checkpoint does not exist.
        ConfigError: If a teacher cannot be built, or the weights are invalid.
    """
    teachers = [_build(config, shared, preprocessor) for config in configs]
    if configs[0].field != 'teacher':
        return TeacherEnsemble(teachers, weights)
    if weights is not None:
        raise ConfigError(f'teacher_weights={weights!r}: must be None for one teacher')
    return teachers[0]


def _build(config: TeacherConfig, shared: dict[str, Any], preprocessor: nn.Module) -> Teacher:
    classifier = config.classifier
    with named(config.field):
        if not isinstance(classifier, BaseClassifier):
            classifier = with_statistics(config.field, classifier, shared, config.checkpoint)
        return Teacher(
            classifier,
            config.checkpoint,
            build_recorder(config.recorder, 'teacher_recorder'),
            config.input_size and config.input_size[1:],
            config.precision,
            preprocessor,
            config.field,
        )


def _each(field: str, value: Any, count: int) -> list[Any]:
    """Return the value of a field for each teacher."""
    is_list = isinstance(value, (list, tuple))
    if field == 'teacher_checkpoint' and isinstance(value, str):
        raise ConfigError(f'{field}={value!r}: must be a list of {count}, one for each teacher')
    is_one_size = field == 'teacher_input_size' and is_list and all(map(is_number, value))
    if not is_list or is_one_size:
        return [value] * count
    if len(value) != count:
        raise ConfigError(
            f'{field}={value!r}: has {len(value)} values; must have {count}, one for each teacher'
        )
    return list(value)


def _check(config: TeacherConfig) -> None:
    classifier = config.classifier
    if not isinstance(classifier, nn.Module):
        check_config(**{config.field: classifier})
    elif not isinstance(classifier, BaseClassifier):
        raise ConfigError(
            f'{config.field}: is a {type(classifier).__name__}; must be an mmpretrain classifier, '
            'or the config of one'
        )
    if config.recorder is not None:
        check_config(teacher_recorder=config.recorder)
    if config.input_size is not None and not are_sizes(config.input_size, 3):
        each = '' if config.field == 'teacher' else '; a list has one (3, H, W) or None per teacher'
        raise ConfigError(
            f'teacher_input_size={config.input_size!r}: must be 3 positive integers{each}'
        )
    check_type('teacher_checkpoint', config.checkpoint, 'a path or URL', str, NoneType)
    check_type('teacher_compile', config.compile, 'True, False or a dict', bool, dict)
