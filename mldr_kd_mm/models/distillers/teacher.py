"""The frozen teacher, kept outside the student's module tree."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models import BaseClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.data_preprocessor import Renormalize
from mldr_kd_mm.models.distillers.teacher_cache import TeacherCache
from mldr_kd_mm.models.taps import stages
from mldr_kd_mm.models.taps.layout import tensors_of
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import Probe, TappedModel
from mldr_kd_mm.models.weights import LoadReport, load_content
from mldr_kd_mm.structures.view import get_views
from mldr_kd_mm.utils.checkpoint import class_names, load_checkpoint
from mldr_kd_mm.utils.device import float32_products
from mldr_kd_mm.utils.errors import ConfigError, MissingFileError, describe, named

Predictions = tuple[str, list[DataSample]]
"""Label of a teacher, or of the mean of several, and a batch's samples with its predictions."""

PRECISIONS = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


class Teacher(TappedModel):
    """A frozen classifier, always in evaluation mode and without gradients.

    It is not an ``nn.Module``: the state dict, parameters, EMA copies, DDP buckets and optimizer of
    a Distiller do not contain the teacher, and copies of the Distiller share it.

    All images that it gets have gone through the student's data preprocessor; it renormalises and
    resizes them itself.

    Args:
        classifier: Config of an mmpretrain classifier, or a built one, which is then frozen and
            keeps its weights.
        checkpoint: Path, URL or ``hf-hub:`` name of the weights, in any format that
            :mod:`mldr_kd_mm.utils.checkpoint` reads. None: the classifier's own config initialises
            it.
        recorder: The recorder, which names the taps. ``logits`` and ``feature`` are always
            available.
        size: (H, W) of the teacher's images. None: the size that its config fixes, or that of the
            batch.
        precision: ``fp32``, ``bf16`` or ``fp16``; the latter two by autocast. None: the student's
            precision, which is half precision under ``--amp``, and TF32 for float32 products on
            GPUs that have it.
        preprocessor: Data preprocessor that its images have gone through. None: its own.
        field: Its name in errors.

    Attributes:
        cache: Cache of its outputs, which TeacherCacheHook sets.
        num_classes: Number of its classes, known after :meth:`probe`; None without a head.
        classes: Names of its classes; empty if its checkpoint does not state them.

    Raises:
        MissingFileError: If the checkpoint does not exist.
        ConfigError: If weights are missing from the checkpoint, or the precision is unknown.
    """

    def __init__(
        self,
        classifier: dict | BaseClassifier,
        checkpoint: str | None,
        recorder: FeatureRecorder,
        size: Sequence[int] | None = None,
        precision: str | None = None,
        preprocessor: nn.Module | None = None,
        field: str = 'teacher',
    ) -> None:
        if precision not in (None, *PRECISIONS):
            raise ConfigError(
                f'teacher_precision={precision!r}: must be one of {", ".join(PRECISIONS)}, or None '
                "for the student's precision"
            )
        is_built = isinstance(classifier, BaseClassifier)
        super().__init__(classifier if is_built else build_classifier(classifier), recorder)
        self.config = _description(classifier) if is_built else classifier
        self.has_weights = is_built or checkpoint is not None
        self.precision = precision
        self.field = field
        self.cache: TeacherCache | None = None
        self.num_classes: int | None = None
        self.classes: tuple[str, ...] = ()
        self._is_shared = False
        self._forward: Callable[..., Any] = self.model
        self._unchecked: tuple[Tensor, torch.cuda.Event] | None = None
        self._cast: tuple[Any, nn.Module] | None = None
        self.size = tuple(size) if size else stages.fixed_size(self.model)
        self.checkpoint = checkpoint
        if checkpoint is not None:
            try:
                report = self._load(checkpoint, 'teacher_checkpoint')
                report.log(f'teacher_checkpoint={checkpoint!r}')
            except MissingFileError as error:
                advice = 'train it with a config of configs/teachers, or set another path or URL'
                raise MissingFileError(f'{error}; {advice}') from None
        self.model.requires_grad_(False).eval()
        own = self.model.data_preprocessor
        with named('data_preprocessor'):
            self.renormalize = Renormalize(own if preprocessor is None else preprocessor, own)
        # Overlapping convolutions are faster in this memory format, much faster on tensor cores.
        self._is_channels_last = any(_overlaps(module) for module in self.model.modules())
        self.model.to(memory_format=self.memory_format)
        _warn_of_slow_precision(precision)

    def members(self, names: Collection[str] = ()) -> list[Member]:
        """Return the teacher itself, which reads all of these names."""
        return [Member('teacher', self, list(names))]

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of the weights and images."""
        return torch.channels_last if self._is_channels_last else torch.contiguous_format

    # Not inference_mode(): a backward pass cannot keep its tensors, torch.compile does not handle
    # them, and it was not measurably faster.
    @torch.no_grad()
    def __call__(self, images: Tensor, names: Collection[str] = ('logits',)) -> dict[str, Tensor]:
        """Run the teacher.

        Args:
            images: (B, 3, H, W), preprocessed for the student.
            names: Tensors to return.

        Returns:
            Name -> arranged tensor (B, ...). ``logits`` is there if the teacher has a head.

        Raises:
            ConfigError: If a logit of a finite image is not finite, or a feature of a teacher
                without a head. On a GPU the next call raises it.
        """
        taps, inputs = self._taps(names), self.prepare(images)
        with self._in_precision(images.device):
            model = self._model_for(inputs)
            with self.recorder(model, taps) as record:
                output = self._run(model, inputs, mode='tensor')
        self._arrange(record)
        record = {**(dict(logits=output) if self.has_head else {}), **record}
        if self.precision is not None:
            record = {name: tensor.float() for name, tensor in record.items()}
        checked = 'logits' if self.has_head else next(iter(record), None)
        if checked is not None:
            self._check_finite(checked, record[checked], images)
        return record

    def read(
        self, images: Tensor, names: Collection[str], data_samples: Sequence[DataSample]
    ) -> dict[str, Tensor]:
        """Read tensors from the cache, or run the teacher if there is none.

        Args:
            images: (B, 3, H, W), preprocessed for the student.
            names: Tensors to return.
            data_samples: The batch's samples, whose views are looked up in the cache.

        Returns:
            Name -> arranged tensor (B, ...).

        Raises:
            ConfigError: If there is a cache and the samples have no views.
        """
        run = partial(self, images, names)
        if self.cache is None:
            return run()
        views = get_views(data_samples)
        if views is None:
            raise ConfigError(
                'teacher_cache: the batch has no views; train_dataloader.sampler must be a '
                "'ViewSampler', and the pipeline must end with PackInputs"
            )
        return self.cache(views, images.device, run)

    def embed(self, images: Tensor) -> Tensor:
        """Return the ``feature`` (B, D) of images that were preprocessed for the student."""
        return self(images, ['feature'])['feature']

    @torch.no_grad()
    def predict(self, images: Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """Predict as mmpretrain's classifiers do: set ``pred_label`` and ``pred_score``.

        Args:
            images: (B, 3, H, W), preprocessed for the student.
            data_samples: The batch's samples, which are changed.

        Raises:
            ConfigError: If the teacher has no head.
        """
        if not self.has_head:
            raise ConfigError(
                f'{self.field}: has no head and cannot predict; its feature can be compared'
            )
        inputs = self.prepare(images)
        with self._in_precision(images.device):
            return self._run(self._model_for(inputs), inputs, data_samples, mode='predict')

    def predictions(
        self, images: Tensor, data_samples: list[DataSample], num_classes: int | None = None
    ) -> Iterator[Predictions]:
        """Yield the predictions of the teacher; see :meth:`predict`.

        Args:
            images: (B, 3, H, W), preprocessed for the student.
            data_samples: The batch's samples, which are changed.
            num_classes: Number of the data's classes. A teacher of another number, or without a
                head, yields nothing.
        """
        if num_classes is None or (self.has_head and num_classes == self.num_classes):
            yield 'teacher', self.predict(images, data_samples)

    def combine(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the logits (B, C) of all teachers together, which are this one's."""
        (own,) = logits
        return own

    def init_weights(self) -> None:
        """Initialise the teacher from its own config, unless it has its weights.

        Raises:
            ConfigError: If the file of its ``init_cfg`` lacks a weight.
        """
        if self.has_weights:
            return
        self._cast = None
        print_log("teacher_checkpoint=None: the teacher's config initialises it", 'current')
        init_cfg = self.config.get('init_cfg') or {}
        if isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained':
            # Unlike a model that is trained, a teacher must have a head.
            path = init_cfg['checkpoint']
            report = self._load(path, 'checkpoint')
            report.log(f'init_cfg of the teacher: checkpoint={path!r}')
        else:
            self.model.init_weights()

    def convert(self, function: Callable[[Tensor], Tensor]) -> Teacher:
        """Convert all weights, as ``nn.Module._apply`` does.

        Args:
            function: Returns the new tensor for an old one.

        Returns:
            The teacher itself. If copies of a Distiller share it and its weights would change, a
            copy of its own, which is not compiled.
        """
        weight = next(self.model.parameters())
        if function(weight) is weight:
            return self
        teacher = self
        if self._is_shared:
            teacher = copy.copy(self)
            teacher.model = teacher._forward = copy.deepcopy(self.model)
            teacher.renormalize = copy.deepcopy(self.renormalize)
            teacher._is_shared = False
        teacher.model._apply(function)
        teacher.renormalize._apply(function)
        teacher._cast = None
        return teacher

    def find_stages_in(self, names: Collection[str], input_size: Sequence[int]) -> None:
        """Find the taps of the stages if some are among the names.

        Args:
            names: Tensors that are read.
            input_size: (3, H, W) of the student's images.
        """
        if {*names} & {*stages.STAGES}:
            self.find_stages(self._own_size(input_size))

    def probe(
        self, names: Collection[str], input_size: Sequence[int], arranged: Collection[str] = ()
    ) -> Probe:
        """Run the teacher once on an empty image; see :meth:`TappedModel.probe`.

        Args:
            names: Tensors to record.
            input_size: (3, H, W) of the student's image.
            arranged: Names that must be maps or tokens.
        """
        size = self._own_size(input_size)
        with named(self.field, partial(self._explain_size, size)):
            probe = super().probe(names, size, arranged)
        self.num_classes = probe.width('logits') if self.has_head else None
        return probe

    def _explain_size(self, size: Sequence[int], error: Exception) -> str:
        height, width = size[1:]
        return (
            f'{self.field}: does not run on images of {height} x {width} px ({describe(error)}); '
            'if it needs another size, set teacher_input_size=(3, H, W) in the config, or a list '
            'with one for each teacher'
        )

    def prepare(self, images: Tensor) -> Tensor:
        """Renormalise and resize images (B, 3, H, W) for the network."""
        # FSDP only moves its own modules.
        images = self.resize(self.renormalize.to(images.device)(images))
        return images.contiguous(memory_format=self.memory_format)

    def resize(self, images: Tensor) -> Tensor:
        """Resize images (B, 3, H, W) to the teacher's size."""
        if self.size is None or self.size == tuple(images.shape[-2:]):
            return images
        return F.interpolate(images, self.size, mode='bilinear', antialias=True)

    def compile(self, names: Collection[str], **options: Any) -> None:
        """Run the teacher through ``torch.compile`` from now on.

        Args:
            names: Tensors that the losses read.
            **options: Arguments of ``torch.compile``.

        Raises:
            ConfigError: If these tensors need taps, which a compiled model does not run.
        """
        if self._taps(names):
            raise ConfigError(
                f'teacher_compile: must be False; the losses read {", ".join(self._taps(names))} '
                'of the teacher, and a compiled teacher only gives its logits'
            )
        self._forward = torch.compile(self.model, **options)

    def _load(self, path: str, field: str) -> LoadReport:
        content = load_checkpoint(path, field)
        self.classes = class_names(content, path)
        return load_content(self.model, content, f'{field}={path!r}')

    def _own_size(self, input_size: Sequence[int]) -> tuple[int, ...]:
        return (3, *(self.size or input_size[1:]))

    def _run(self, model: nn.Module, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (self._forward if model is self.model else model)(images, *args, **kwargs)

    def _model_for(self, images: Tensor) -> nn.Module:
        """Return the model on the device of prepared images.

        Under autocast it is a copy whose linear and convolutional weights are in half precision, if
        that gives the same logits. Autocast itself would convert frozen weights in each call.
        """
        device = images.device
        # FSDP only moves its own modules.
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        if self._forward is not self.model or not torch.is_autocast_enabled(device.type):
            return self.model
        dtype = torch.get_autocast_dtype(device.type)
        state = dtype, device, sum(parameter._version for parameter in self.model.parameters())
        if self._cast is None or self._cast[0] != state:
            cast = _cast_weights(self.model, dtype)
            self._cast = state, cast if _agree(self.model, cast, images) else self.model
        return self._cast[1]

    def _taps(self, names: Collection[str]) -> list[str]:
        """Select the names to tap. The model's output is its logits unless the config taps them."""
        return [name for name in names if name != 'logits' or name in self.recorder.taps]

    def _check_finite(self, name: str, values: Tensor, images: Tensor) -> None:
        """Refuse NaN and Inf. On a GPU this checks the previous call, so that nothing waits."""
        # An image that is not finite is not the teacher's fault: NonFiniteHook skips its step.
        # Times 0, a finite value is 0 and any other one NaN, in few kernels.
        sums = (each.flatten(1).sum(1, dtype=torch.float32) * 0 for each in (values, images))
        is_wrong, is_unsound = (each.isnan() for each in sums)
        wrong = (is_wrong > is_unsound).sum()
        if values.is_cuda:
            arrived = torch.cuda.Event()
            current = wrong.to('cpu', non_blocking=True), arrived
            arrived.record()
            last, self._unchecked = self._unchecked, current
            if last is None:
                return
            wrong, arrived = last
            arrived.synchronize()
        if wrong:
            raise ConfigError(
                f'{self.field} {name}: {int(wrong)} of {len(values)} samples are not finite; check '
                "the teacher's weights and, in half precision, their range"
            )

    def _in_precision(self, device: torch.device) -> AbstractContextManager:
        """Return a context with the teacher's own precision, or with TF32 if it has none."""
        if self.precision is None:
            return float32_products(device, 'high')
        dtype = PRECISIONS[self.precision]
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def __deepcopy__(self, memo: dict) -> Teacher:
        self._is_shared = True
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what cannot be pickled: CUDA events and compiled code."""
        return vars(self) | dict(_unchecked=None, _forward=self.model, _cast=None)


class Member(NamedTuple):
    """A teacher with its label and the names of the tensors that are read from it."""

    label: str
    teacher: Teacher
    names: list[str]


def _description(model: nn.Module) -> dict[str, str]:
    """Return what the teacher cache compares in place of the config of a built model."""
    return dict(type=type(model).__name__, modules=str(model))


def _cast_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a model with the weights of its linear layers and convolutions in another dtype.

    All other parameters and buffers are shared with the model, and weights that another module has
    as well.
    """
    tensors = [*model.parameters(), *model.buffers()]
    names = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    shared = {id(tensor): tensor for tensor in tensors}
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            for parameter in module.parameters(recurse=False):
                if names[id(parameter)] == 1:
                    cast = parameter.detach().to(dtype)
                    shared[id(parameter)] = nn.Parameter(cast, requires_grad=False)
    return copy.deepcopy(model, shared)


def _agree(model: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Return whether two models give the same output; on a GPU the host waits for it."""
    expected = tensors_of(model(images, mode='tensor'))
    try:
        found = tensors_of(other(images, mode='tensor'))
        return all(map(torch.equal, expected, found))
    except RuntimeError:  # A part of the model that runs in float32 has weights in half precision.
        return False


def _overlaps(module: nn.Module) -> bool:
    """Return whether a module is a convolution with overlapping windows, not a patch embedding."""
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > max(module.stride)


def _warn_of_slow_precision(precision: str | None) -> None:
    if precision in (None, 'fp32') or torch.cuda.is_available():
        return
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print_log(
            f'teacher_precision={precision!r}: this CPU is slower with it than with fp32',
            'current',
            logging.WARNING,
        )
