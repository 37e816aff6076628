"""Predict the classes of images with a student."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.run_record import RunRecord, mapping
from mldr_kd_mm.apis.student import build_student, read_run_config, rebuild_student
from mldr_kd_mm.apis.student_images import StudentImages, find_images
from mldr_kd_mm.evaluation.logged_run import find_checkpoints
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.checkpoint import (
    find_weights,
    load_checkpoint,
    local_file,
    student_state_dict,
)
from mldr_kd_mm.utils.errors import (
    REMOTE,
    ConfigError,
    MissingFileError,
    check_positive,
    named,
)
from mldr_kd_mm.utils.progress import track
from mldr_kd_mm.utils.run_identity import Origin
from mldr_kd_mm.utils.stored_config import check_types, default_scope
from mldr_kd_mm.utils.workers import available_cores

TABLES = ('.csv', '.json')
"""Suffixes of the files that :func:`write_predictions` writes."""

_MAX_THREADS = 8


class Prediction(NamedTuple):
    """Result for one image.

    Attributes:
        path: Path of the image.
        classes: Names of the most probable classes, the most probable first; empty if the image
            cannot be read. A class without a name has its number.
        probabilities: Their probabilities.
        error: Why the image cannot be read; empty if it can.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ''


class _Network(NamedTuple):
    """A student that is ready to run.

    Attributes:
        description: Its description.
        run: Maps its input to its output, both on the CPU.
        batch_size: The only batch size that it takes; None if it takes any.
    """

    description: StudentDescription
    run: Callable[[Tensor], Tensor]
    batch_size: int | None = None


def predict(
    student: str | Path,
    images: str | Path | Sequence[str | Path],
    top_k: int = 1,
    batch_size: int = 32,
    device: str | None = None,
) -> list[Prediction]:
    """Predict the classes of images with a student.

    ::

        from mldr_kd_mm import predict

        for result in predict('run/student', 'photos', top_k=3):
            print(result.path, result.classes, result.probabilities)

    Images are prepared as in the validation of the run, so the accuracy measured there applies.
    Loading a student never executes code from its files and downloads no weights.

    Args:
        student: Path of an exported folder, ``.pth``, ``.safetensors`` or ``.onnx`` file, of a
            checkpoint of a distillation run, or of its work directory, whose newest checkpoint is
            read.
        images: Files, folders, which are searched recursively, or patterns such as
            ``'photos/**/*.jpg'``.
        top_k: Number of classes to return for each image, at most all.
        batch_size: Number of images per batch.
        device: Device of the network, such as ``'cuda'``. None: a GPU if there is one.

    Returns:
        A result for each image. A file that cannot be read as an image has an ``error``.

    Raises:
        MissingFileError: There is no such student, or no such image.
        ConfigError: An argument is invalid, there are no images, or the student cannot be loaded.
    """
    check_positive(top_k=top_k, batch_size=batch_size)
    network = _load(os.fspath(student), device)
    if network.description.output == 'feature':
        raise ConfigError(
            f'student={os.fspath(student)!r}: must have a head to predict classes; measure its '
            'features with mldr-kd probe'
        )
    paths = find_images(images)
    dataset = StudentImages(paths, network.description)
    size = 1 if network.description.input == 'uint8' else network.batch_size or batch_size
    results: list[Prediction] = []
    for batch in _read(dataset, size):
        outcomes = _classify(network, dataset, batch, top_k)
        results += [
            Prediction(path, *outcome)
            for path, outcome in zip(paths[len(results) :], outcomes, strict=False)
        ]
    return results


def write_predictions(
    path: str | Path, predictions: Sequence[Prediction], overwrite: bool = False
) -> None:
    """Write the predictions for the images that could be read.

    Args:
        path: Path of a ``.csv`` file with the columns ``path``, ``class``, ``probability``,
            ``class_2``, ``probability_2``, ...; or of a ``.json`` file with a list of
            ``{"path": ..., "classes": [{"class": ..., "probability": ...}, ...]}``.
        predictions: The predictions.
        overwrite: Whether to replace an existing file.

    Raises:
        ConfigError: See :func:`check_table`.
        OSError: The file cannot be written.
    """
    check_table(path, overwrite)
    rows = [result for result in predictions if not result.error]
    with atomic_write(path) as file:
        # The name of a file may have bytes that are not UTF-8.
        text = io.TextIOWrapper(file, 'utf-8', 'surrogateescape', newline='')
        if Path(path).suffix == '.json':
            json.dump([_to_dict(row) for row in rows], text, indent=1)
            text.write('\n')
        else:
            csv.writer(text).writerows(to_table(rows))
        text.flush()
        text.detach()


def check_table(path: str | Path, overwrite: bool = False) -> None:
    """Check that predictions can be written to a file.

    Args:
        path: Path of the file.
        overwrite: Whether to replace an existing file.

    Raises:
        ConfigError: It cannot be written there, has the suffix of another format, or exists and
            must not be replaced.
    """
    label, folder = f'out={str(path)!r}', Path(path).parent
    if Path(path).suffix not in TABLES:
        raise ConfigError(f'{label}: must end with {" or ".join(TABLES)}')
    if not folder.is_dir():
        raise MissingFileError(f'{label}: there is no such folder; create it first')
    if Path(path).is_dir():
        raise ConfigError(f'{label}: is a folder; must be a file')
    if os.path.lexists(path) and not overwrite:
        raise ConfigError(
            f'{label}: exists already; name another file, or replace it with overwrite=True'
        )
    if not os.access(folder, os.W_OK):
        raise ConfigError(f'{label}: the folder cannot be written; name a file in another one')


def to_table(predictions: Sequence[Prediction]) -> Iterator[list[Any]]:
    """Yield a header and a row of path, class, probability, second class, ... for each image.

    Args:
        predictions: Predictions for images that could be read.
    """
    count = max((len(each.classes) for each in predictions), default=1)
    ranks = ['', *(f'_{rank}' for rank in range(2, count + 1))]
    yield ['path', *(f'{name}{rank}' for rank in ranks for name in ('class', 'probability'))]
    for each in predictions:
        pairs = zip(each.classes, each.probabilities, strict=True)
        yield [each.path, *(item for name, value in pairs for item in (name, f'{value:.6f}'))]


def _to_dict(prediction: Prediction) -> dict[str, Any]:
    pairs = zip(prediction.classes, prediction.probabilities, strict=True)
    classes = [{'class': name, 'probability': value} for name, value in pairs]
    return {'path': prediction.path, 'classes': classes}


def _read(dataset: StudentImages, size: int) -> Iterator[list[Tensor | ConfigError]]:
    """Yield batches of images; threads decode the next one meanwhile."""
    batches = [range(start, len(dataset))[:size] for start in range(0, len(dataset), size)]
    with ThreadPoolExecutor(min(_MAX_THREADS, available_cores())) as threads:
        upcoming = threads.map(dataset.read, batches[0])
        for number, _ in enumerate(track(batches, 'predict'), 1):
            images = list(upcoming)
            upcoming = threads.map(dataset.read, batches[number] if batches[number:] else ())
            yield images


def _classify(
    network: _Network, dataset: StudentImages, batch: list[Tensor | ConfigError], top_k: int
) -> list[tuple]:
    """Return classes, probabilities and error for each image of a batch."""
    images = [image for image in batch if isinstance(image, Tensor)]
    rows = iter(())
    if images:
        output = network.run(dataset.normalise(torch.stack(images))).float()
        if not output.isfinite().all():
            raise ConfigError('student: its output is NaN or infinite; train it again')
        is_probability = network.description.output == 'probabilities'
        best = (output if is_probability else output.softmax(1)).topk(min(top_k, output.shape[1]))
        names = network.description.class_names(output.shape[1])
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    outcomes = []
    for image in batch:
        if isinstance(image, Tensor):
            numbers, probabilities = next(rows)
            outcomes.append((tuple(names[number] for number in numbers), tuple(probabilities), ''))
        else:
            outcomes.append(((), (), str(image)))
    return outcomes


def _load(path: str, device: str | None) -> _Network:
    """Load a student."""
    if REMOTE.match(path):
        raise ConfigError(f'student={path!r}: must be a file or a folder; download it first')
    if path.endswith('.pt2'):
        raise ConfigError(
            f'student={path!r}: must be a folder, .pth, .safetensors or .onnx; export one of these'
        )
    if path.endswith('.onnx'):
        return _load_graph(path, device)
    description, classifier = load_student(path)
    place = usable_device(device)
    classifier.to(place)

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return classifier(images.to(place), mode='tensor').cpu()

    return _Network(description, run)


def load_student(path: str) -> tuple[StudentDescription, nn.Module]:
    """Build a student and load its weights.

    Args:
        path: Path of a run's work directory, whose newest checkpoint is read; of a checkpoint of a
            run; or of an exported folder or file of weights.

    Returns:
        Its description, and the classifier in evaluation mode.

    Raises:
        MissingFileError: There is no such file.
        ConfigError: It is not of a student, or the student cannot be built.
    """
    path = resolve_checkpoint(path)
    content = load_checkpoint(path, 'student')
    return _of_run(content, path) or _of_export(content, path)


def resolve_checkpoint(path: str) -> str:
    """Return the newest checkpoint in the work directory of a run, and any other path as it is.

    Args:
        path: Path of a work directory, checkpoint, or exported folder or file.

    Raises:
        ConfigError: It is a folder with neither a checkpoint of a run nor an exported student.
    """
    if not os.path.isdir(path) or local_file(path).is_file():
        return path
    checkpoints = (file for file in find_checkpoints(Path(path)) if Origin.read(file))
    found = next(checkpoints, None)
    if found is None:
        raise ConfigError(
            f'student={path!r}: must be a file, an exported folder, or the work directory of a run'
        )
    return str(found)


def _of_run(content: dict[str, Any], path: str) -> tuple[StudentDescription, nn.Module] | None:
    """Return the student of a checkpoint of a run, or None if it is no such checkpoint."""
    if not any(str(name).startswith('student.') for name in mapping(content, 'state_dict')):
        return None
    record = RunRecord.read(content, path)
    run = read_run_config(record)
    student = rebuild_student(run, student_state_dict(content))
    return StudentDescription.of(record, run, student), student.model


def _of_export(content: dict[str, Any], path: str) -> tuple[StudentDescription, nn.Module]:
    """Return the student of an exported file of weights."""
    file = local_file(path)
    metadata, label = mapping(content, 'meta').get('student'), f'student={path!r}'
    if metadata is None and 'cfg' in mapping(content, 'meta'):
        raise ConfigError(
            f'{label}: is a checkpoint of a run without a teacher; must be of a distillation run, '
            'or a student that was exported from one'
        )
    if file.suffix == '.safetensors':
        with safe_open(file, 'pt') as opened:
            metadata = opened.metadata()
    description = StudentDescription.from_metadata(metadata, label)
    scope = default_scope(dict(default_scope=description.default_scope))
    weights = find_weights(content, label).tensors
    return description, build_student(check_types(description.model, 'model'), weights, scope)


def _load_graph(path: str, device: str | None) -> _Network:
    """Load an ONNX file."""
    if not os.path.isfile(path):
        raise MissingFileError(f'student={path!r}: there is no such file')
    label = f'student={path!r}'
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f'{label}: needs onnxruntime; run pip install onnxruntime') from error
    providers = onnxruntime.get_available_providers()
    kinds = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}
    if device is not None:
        with named(f'device={device!r}'):
            provider = kinds.get(torch.device(device).type)
        if provider not in providers:
            raise ConfigError(f'device={device!r}: the installed onnxruntime does not support it')
        providers = [provider]
    else:
        providers = [kinds[kind] for kind in ('cuda', 'cpu') if kinds[kind] in providers]
    with named(label):
        session = onnxruntime.InferenceSession(path, providers=providers)
        (images,) = session.get_inputs()
    metadata = session.get_modelmeta().custom_metadata_map
    description = StudentDescription.from_metadata(metadata, label)

    def run(batch: Tensor) -> Tensor:
        with named(label):
            return torch.from_numpy(session.run(None, {images.name: batch.numpy()})[0])

    size = images.shape[0]
    return _Network(description, run, size if isinstance(size, int) else None)


def usable_device(device: str | None) -> torch.device:
    """Return a device that works.

    Args:
        device: Its name. None: a GPU if there is one.

    Raises:
        ConfigError: There is no such device.
    """
    device = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    with named(f'device={device!r}'):
        place = torch.device(device)
        torch.zeros(1, device=place)
    return place
