"""Static INT8 quantisation of an exported ONNX graph, and its cost in accuracy."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from mmpretrain.models import ClsDataPreprocessor
from torch.utils.data import DataLoader

from mldr_kd_mm.apis.run_record import validation_part
from mldr_kd_mm.apis.student_images import seen_in_training, steps_for_files
from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.evaluation.logged_run import LoggedRun
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_not_negative,
    check_positive,
    named,
    printable,
)
from mldr_kd_mm.utils.logging import percent, plural
from mldr_kd_mm.utils.stored_config import check_types, default_scope, registered_names_only

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from mldr_kd_mm.apis.student import RebuiltStudent

CALIBRATION_IMAGES = 256
"""Default number of calibration images."""
MAX_DROP = 1.0
"""Default of the largest allowed loss of accuracy, in percentage points."""

_LAYERS = ('Conv', 'Gemm', 'MatMul')
# Activations and pooling between two layers stay in INT8. A sum does not: the residual stream of a
# Transformer has outliers.
_QUANTIZED = (*_LAYERS, 'Relu', 'Clip', 'MaxPool')
_BATCH = 32
_FEW = 16  # images that a layer's sensitivity is measured on
_SECONDS, _MOST_REPEATS = 2.0, 200

Batch = tuple[np.ndarray, np.ndarray]


class Quantized(NamedTuple):
    """Result of a quantisation.

    Attributes:
        accuracy: Top-1 accuracy of the fp32 graph on the validation images, in percent.
        int8_accuracy: That of the INT8 graph.
        latency: Median time of the fp32 graph for one image, in ms.
        int8_latency: That of the INT8 graph.
        megabytes: Size of the fp32 file, in MB.
        int8_megabytes: That of the INT8 file.
        calibration_images: Number of calibration images.
        validation_images: Number of validation images.
        kept: Layers that stay in fp32, by their names in the graph.
        layers: Number of layers of the graph: convolutions and products with a weight.
    """

    accuracy: float
    int8_accuracy: float
    latency: float
    int8_latency: float
    megabytes: float
    int8_megabytes: float
    calibration_images: int
    validation_images: int
    kept: tuple[str, ...]
    layers: int

    def summary(self) -> str:
        """Return the measurements in one line."""
        return (
            f'accuracy {percent(self.accuracy)} in fp32, {percent(self.int8_accuracy)} in INT8 '
            f'({plural(self.validation_images, "image")}); '
            f'{self.latency:.2f} ms an image in fp32, {self.int8_latency:.2f} ms in INT8; '
            f'{self.megabytes:.1f} MB in fp32, {self.int8_megabytes:.1f} MB in INT8'
        )

    def facts(self) -> Iterator[str]:
        """Yield the lines of the model card."""
        loss = self.accuracy - self.int8_accuracy
        yield (
            f'Accuracy on {plural(self.validation_images, "validation image")}: '
            f'{self.accuracy:.2f} % in fp32, {self.int8_accuracy:.2f} % in INT8, '
            f'a loss of {loss:.2f} points'
        )
        yield (
            'Latency of one image, ONNX Runtime on the CPU of the export with '
            f'{plural(torch.get_num_threads(), "thread")}: {self.latency:.2f} ms in fp32, '
            f'{self.int8_latency:.2f} ms in INT8 (medians)'
        )
        yield f'File: {self.megabytes:.1f} MB in fp32, {self.int8_megabytes:.1f} MB in INT8'
        yield (
            'Static quantisation by ONNX Runtime, QDQ, 7-bit weights per channel (no overflow '
            f'on CPUs without VNNI), calibrated on {plural(self.calibration_images, "image")}'
        )
        names = ', '.join(f'`{printable(name)}`' for name in self.kept) or 'none'
        yield f'Sensitive layers in fp32: {names} of {self.layers}'


class Quantizer:
    """Static INT8 quantisation of a student's ONNX graph, with the images that it needs.

    The images go through the run's validation transforms.

    Args:
        run: The run's config.
        checkpoint: Path of its checkpoint.
        classes: Names of the run's classes; empty if unknown.
        student: The student.
        calibrate: Folder with one folder of images per class, or with ``train/`` of that form.
        calibration_images: Number of images to take from it, evenly spaced in the list sorted by
            class.
        validate: Folder with one folder of images per class, or with ``val/`` of that form. None:
            the run's own validation set.
        max_drop: Largest allowed loss of accuracy, in percentage points.

    Attributes:
        notes: Remarks for the user.

    Raises:
        ConfigError: An argument is invalid, a folder has no images or one class, there are no
            validation images, or some of them are training images of the run.
    """

    def __init__(
        self,
        run: Mapping[str, Any],
        checkpoint: str,
        classes: Sequence[str],
        student: RebuiltStudent,
        calibrate: str | None = None,
        calibration_images: int = CALIBRATION_IMAGES,
        validate: str | None = None,
        max_drop: float = MAX_DROP,
    ) -> None:
        check_positive(calibration_images=calibration_images)
        check_not_negative(max_drop=max_drop)
        if not calibrate:
            raise ConfigError('calibrate: must be a folder of images for int8=True')
        if not student.num_classes:
            raise ConfigError(
                'int8=True: the student has no logits, so the loss of accuracy cannot be measured; '
                'export the fp32 graph'
            )
        self.max_drop = max_drop
        folder = _Folder(run, student, 'calibrate', calibrate, 'train')
        images = [images for images, _ in folder.batches(calibration_images)]
        self.calibration = np.concatenate(images)
        self.validation = (
            _OwnValidation(run, student, classes)
            if validate is None
            else _Folder(run, student, 'validate', validate, 'val', classes)
        )
        self.notes: list[str] = []
        if validate is not None:
            self.notes = _check_unseen(run, Path(checkpoint), self.validation.dataset, validate)

    def __call__(self, path: Path) -> Quantized:
        """Replace an ONNX graph of the student with its INT8 version, and measure both.

        If the loss is too large, the most sensitive layers stay in fp32: 1, then 2, 4, … up to half
        of them.

        Args:
            path: The file, which is replaced. Its metadata is kept.

        Returns:
            The measurements.

        Raises:
            ConfigError: ONNX Runtime cannot quantise the graph, or it loses more than
                ``max_drop``.
        """
        with TemporaryDirectory(dir=path.parent) as name, named('int8'), _quiet():
            folder = Path(name)
            source = _prepare(path, folder / 'fp32.onnx')
            target = folder / 'int8.onnx'
            layers = _layers(source)
            if not layers:
                raise ConfigError('int8: the graph has no layer that can be quantised')
            kept: list[str] = []
            _quantize(source, target, self.calibration, kept)
            floating, quantized = _session(path), _session(target)
            (accuracy, int8), images = _accuracies((floating, quantized), self.validation.batches())
            ranking: list[str] = []
            while accuracy - int8 > self.max_drop:
                ranking = ranking or _by_sensitivity(source, self.calibration, folder)
                count = max(1, 2 * len(kept))
                if 2 * count > len(layers):
                    raise ConfigError(self._too_large(accuracy, int8, kept))
                kept = ranking[:count]
                _quantize(source, target, self.calibration, kept)
                quantized = _session(target)
                (int8,), _ = _accuracies((quantized,), self.validation.batches())
            latencies = _latencies((floating, quantized), self.calibration[:1])
            _copy_metadata(path, target)
            sizes = [file.stat().st_size / 1e6 for file in (path, target)]
            target.replace(path)
        return Quantized(
            accuracy,
            int8,
            *latencies,
            *sizes,
            calibration_images=len(self.calibration),
            validation_images=images,
            kept=tuple(kept),
            layers=len(layers),
        )

    def _too_large(self, accuracy: float, int8: float, kept: Sequence[str]) -> str:
        still = f', even with {plural(len(kept), "layer")} in fp32' if kept else ''
        return (
            f'max_drop={self.max_drop}: INT8 has {int8:.2f} % where fp32 has {accuracy:.2f} %'
            f'{still}; nothing was written; train with the QuantizationAwareHook, or allow a '
            'larger drop'
        )


class _OwnValidation:
    """The run's own validation set."""

    def __init__(
        self, run: Mapping[str, Any], student: RebuiltStudent, classes: Sequence[str]
    ) -> None:
        self.preprocessor = student.model.data_preprocessor
        logged = LoggedRun('', Path(), Config(dict(run)), [])
        try:
            self.loader = logged.validation_batches(samples=2**31)
        except ConfigError as error:
            raise ConfigError(
                f"validate: the run's own validation set cannot be read ({error}); name a folder "
                'with one folder of images per class'
            ) from error
        present = (getattr(self.loader.dataset.dataset, 'metainfo', None) or {}).get('classes')
        if classes and present and list(map(str, present)) != list(map(str, classes)):
            raise ConfigError(
                f"validate: the run's own validation set has {len(present)} classes now, which are "
                f'not the {len(classes)} of the run in their order; name a folder that has them'
            )

    def batches(self) -> Iterator[Batch]:
        """Yield images (B, 3, H, W) as the network gets them, and their labels (B,)."""
        for batch in self.loader:
            yield _arrays(self.preprocessor(batch))


class _AllImages(ImageFolder):
    """An ImageFolder without held-out images: both splits have all images of the class folders."""

    def _part(self, paths: list[Path], name: str) -> list[Path]:
        return paths


class _Folder:
    """Images of a folder that the user names, prepared like the run's validation images."""

    def __init__(
        self,
        run: Mapping[str, Any],
        student: RebuiltStudent,
        field: str,
        folder: str,
        split: str,
        classes: Sequence[str] | None = None,
    ) -> None:
        preprocessing = student.preprocessing
        self.preprocessor = ClsDataPreprocessor(
            preprocessing.mean, preprocessing.std, to_rgb=preprocessing.channel_order == 'RGB'
        )
        try:
            with DefaultScope.overwrite_default_scope(default_scope(run)), registered_names_only():
                steps = steps_for_files(validation_part(run).get('pipeline'), student.input_size)
                pipeline = check_types(steps, 'val_dataloader.dataset.pipeline')
                self.dataset = _AllImages(folder, split, pipeline=pipeline)
        except ConfigError as error:
            raise ConfigError(str(error).replace('data_root', field)) from error
        names = self.dataset.metainfo['classes']
        self.labels = np.arange(len(names))
        if classes is not None:
            numbers = [str(number) for number in range(student.num_classes)]
            self.labels = _labels(names, classes or numbers, student.num_classes, field, folder)

    def batches(self, count: int | None = None) -> Iterator[Batch]:
        """Yield images (B, 3, H, W) as the network gets them, and their labels (B,).

        Args:
            count: Number of images, evenly spaced over the folder. None: all.
        """
        size = len(self.dataset)
        count = size if count is None else min(count, size)
        # The images are sorted by class.
        chosen = np.linspace(0, size - 1, count).round().astype(int).tolist()
        subset = torch.utils.data.Subset(self.dataset, chosen)
        for batch in DataLoader(subset, batch_size=_BATCH, collate_fn=pseudo_collate):
            images, labels = _arrays(self.preprocessor(batch))
            yield images, self.labels[labels]


def _check_unseen(
    run: Mapping[str, Any], checkpoint: Path, dataset: ImageFolder, folder: str
) -> list[str]:
    """Refuse images on which the run has trained; return a note if that is not known of all."""
    seen, unknown = seen_in_training(run, checkpoint, dataset)
    if seen:
        own = "leave it out for the run's own validation set, or "
        raise ConfigError(
            f"validate={folder!r}: {len(seen)} of its {len(dataset)} images are among the run's "
            f'training images, such as {printable(min(seen))!r}, where the accuracy is too high; '
            f'{own if run.get("val_dataloader") else ""}name a folder of other images'
        )
    if not unknown:
        return []
    return [
        f"validate={folder!r}: could not be compared with the run's training images ({unknown}); "
        'on images that it trained on, the accuracy is too high'
    ]


def _labels(
    names: Sequence[str], classes: Sequence[str], count: int, field: str, folder: str
) -> np.ndarray:
    """Return the run's label of each class of a folder."""
    unknown = [name for name in names if name not in classes]
    if unknown or len(classes) != count:
        what = f'class {unknown[0]!r} is not' if unknown else f'its {len(classes)} classes are not'
        raise ConfigError(
            f"{field}={folder!r}: {what} of the run's {count} classes; name a folder with the "
            "run's classes"
        )
    return np.array([list(classes).index(name) for name in names])


def _arrays(batch: Mapping[str, Any]) -> Batch:
    labels = [int(sample.gt_label) for sample in batch['data_samples']]
    return batch['inputs'].numpy(), np.array(labels)


def _prepare(path: Path, prepared: Path) -> Path:
    """Fold BatchNorm into convolutions and infer the shapes of all tensors."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        quant_pre_process(str(path), str(prepared))
    except Exception:  # the symbolic shape inference raises anything for an operator unknown to it
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    return prepared


def _layers(path: Path) -> list[str]:
    """Return the names of the convolutions and of the products with a weight."""
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in _LAYERS]
    return [node.name for node in nodes if node.input[1] in constants]


def _quantize(
    source: Path,
    target: Path,
    calibration: np.ndarray,
    kept: Sequence[str] = (),
    only: Sequence[str] = (),
) -> None:
    """Quantise all layers but ``kept``, or the layers ``only``."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        str(source),
        str(target),
        _Reader(source, calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_QUANTIZED),
        per_channel=True,
        # The fastest types on x86. Without VNNI, products with weights of 8 bits overflow.
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        nodes_to_quantize=list(only),
        nodes_to_exclude=list(kept),
        # Products of two activations, as in attention, stay in fp32.
        extra_options=dict(MatMulConstBOnly=True),
    )


def _by_sensitivity(source: Path, calibration: np.ndarray, folder: Path) -> list[str]:
    """Return the layers, first those whose quantisation alone changes the logits the most."""
    few = calibration[np.linspace(0, len(calibration) - 1, _FEW).round().astype(int)]
    expected = _logits(_session(source), few)
    errors = {}
    for layer in _layers(source):
        _quantize(source, folder / 'trial.onnx', few, only=[layer])
        logits = _logits(_session(folder / 'trial.onnx'), few)
        errors[layer] = float(np.square(logits - expected).sum())
    return sorted(errors, key=errors.get, reverse=True)


class _Reader:
    """Calibration images in batches, as ONNX Runtime asks for them."""

    def __init__(self, graph: Path, images: np.ndarray) -> None:
        size = _batch_size(_session(graph))
        self._batches = iter([images[i : i + size] for i in range(0, len(images), size)])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {'images': batch}


def _session(path: Path) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def _batch_size(session: InferenceSession) -> int:
    """Return the batch size to run a graph with: 1 if it is fixed."""
    return 1 if isinstance(session.get_inputs()[0].shape[0], int) else _BATCH


def _logits(session: InferenceSession, images: np.ndarray) -> np.ndarray:
    size = _batch_size(session)
    parts = (images[start : start + size] for start in range(0, len(images), size))
    return np.concatenate([session.run(['logits'], {'images': part})[0] for part in parts])


def _accuracies(
    sessions: Sequence[InferenceSession], batches: Iterable[Batch]
) -> tuple[list[float], int]:
    """Return the top-1 accuracy of each graph, in percent, and the number of images."""
    right, total = np.zeros(len(sessions)), 0
    for images, labels in batches:
        total += len(labels)
        right += [(_logits(session, images).argmax(1) == labels).sum() for session in sessions]
    return (100 * right / total).tolist(), total


def _latencies(sessions: Sequence[InferenceSession], images: np.ndarray) -> list[float]:
    """Return the median time of each graph, in ms, measured alternately, as load varies."""
    times: list[list[float]] = [[] for _ in sessions]
    start = time.perf_counter()
    while len(times[0]) < _MOST_REPEATS and time.perf_counter() - start < _SECONDS:
        for session, own in zip(sessions, times, strict=True):
            begin = time.perf_counter()
            session.run(None, {'images': images})
            own.append(1000 * (time.perf_counter() - begin))
    return [median(own[1:] or own) for own in times]  # the first is a warm-up


def _copy_metadata(source: Path, target: Path) -> None:
    import onnx

    model = onnx.load(target)
    properties = onnx.load(source, load_external_data=False).metadata_props
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in properties})
    onnx.save(model, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the advice that ONNX Runtime's tools log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
