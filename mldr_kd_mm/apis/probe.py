"""Measure the kNN and the linear-probe accuracy of a student's features."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.predict import load_student, resolve_checkpoint, usable_device
from mldr_kd_mm.apis.run_record import RunRecord
from mldr_kd_mm.apis.student import read_run_config
from mldr_kd_mm.apis.student_images import seen_in_training, steps_for_files
from mldr_kd_mm.apis.training_images import held_out_options
from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.evaluation.knn import NEIGHBOURS, KNNClassifier, embed_all, embedder
from mldr_kd_mm.evaluation.linear_probe import LinearProbe
from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.utils.errors import ConfigError, check_count, check_positive, printable
from mldr_kd_mm.utils.progress import track
from mldr_kd_mm.utils.stored_config import check_types, default_scope, registered_names_only
from mldr_kd_mm.utils.workers import default_workers


class Probed(NamedTuple):
    """Accuracies on the validation images by a student's features, in percent.

    Attributes:
        knn: kNN accuracy, with the 20 nearest training images.
        linear: Accuracy of a logistic regression on the training images (linear probe).
        train_images: Number of training images.
        val_images: Number of validation images.
    """

    knn: float
    linear: float
    train_images: int
    val_images: int


def probe(
    student: str,
    data: str,
    val_fraction: float | None = None,
    seed: int | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    device: str | None = None,
) -> Probed:
    """Classify a folder of images by the features of a student.

    The student does not change. The feature of each image, without augmentation, is classified by
    its nearest training images (:class:`~mldr_kd_mm.evaluation.knn.KNNClassifier`) and by a linear
    classifier (:class:`~mldr_kd_mm.evaluation.linear_probe.LinearProbe`).

    Args:
        student: Work directory of a run, whose newest checkpoint is read; path of a checkpoint; or
            of an exported folder, ``.pth`` or ``.safetensors`` file.
        data: Folder of images with one folder per class, see :func:`mldr_kd_mm.distill`.
        val_fraction: Fraction of the images to hold out if the folder has no validation images.
            None: 0.1.
        seed: Seed of the choice of the held-out images. None: 0.
        batch_size: Images per batch.
        workers: Number of processes that load images. None: one per core, at most 8.
        device: Device of the network, such as ``'cuda'``. None: a GPU if there is one.

    Returns:
        The accuracies.

    Raises:
        ConfigError: If an argument is invalid, the student cannot be built, or the folder does not
            have images of at least two classes.
    """
    check_positive(batch_size=batch_size)
    workers = default_workers() if workers is None else workers
    check_count(workers=workers)
    place = usable_device(device)
    student = resolve_checkpoint(student)
    model, description = open_student(student)
    scope = default_scope(dict(default_scope=description.default_scope))
    with DefaultScope.overwrite_default_scope(scope), registered_names_only():
        pipeline = check_types(
            steps_for_files(description.pipeline, description.input_size), 'pipeline'
        )
        choice = held_out_options(data, val_fraction=val_fraction, seed=seed)
        images = [
            ImageFolder(data_root=data, split=split, pipeline=pipeline, **choice)
            for split in ('train', 'val')
        ]
    _warn_of_seen(student, images[1])
    loaders = [
        DataLoader(part, batch_size, num_workers=workers, collate_fn=pseudo_collate)
        for part in images
    ]
    knn, linear = measure(model, loaders, place)
    return Probed(knn, linear, *map(len, images))


def _warn_of_seen(student: str, val: ImageFolder) -> None:
    """Warn if the student's run has trained on some validation images."""
    content = load_checkpoint(student, 'student', read_tensors=False)
    record = RunRecord.read(content, student)
    if record.config is None:  # an exported student
        return
    seen, _ = seen_in_training(read_run_config(record), Path(student), val)
    if seen:
        print_log(
            f'{len(seen)} of the {len(val)} validation images are among the training images of the '
            f'run, such as {printable(min(seen))!r}, so the accuracies may be too high; to hold '
            'out the same images as the run, repeat its seed and val_fraction',
            'current',
            logging.WARNING,
        )


def measure(
    model: nn.Module, loaders: Sequence[DataLoader], device: torch.device
) -> tuple[float, float]:
    """Classify images by the features of a model.

    Args:
        model: The classifier; it is moved to the device.
        loaders: Loaders of the training and of the validation images.
        device: The device.

    Returns:
        The kNN and the linear-probe accuracy, in percent.

    Raises:
        ConfigError: If a feature is not finite.
    """
    model = model.to(device).eval()
    (train, labels), (val, truth) = (
        embed_all(track(loader, name), model.data_preprocessor, embedder(model))
        for loader, name in zip(loaders, ('training images', 'validation images'), strict=True)
    )
    if not (train.isfinite().all() and val.isfinite().all()):
        raise ConfigError('student: gives features that are NaN or infinite; training has diverged')
    classify = KNNClassifier(train, labels, NEIGHBOURS)
    nearest = torch.cat([classify(part).argmax(1) for part in val.split(128)])
    return _percent(nearest, truth), _percent(LinearProbe(train, labels)(val), truth)


def _percent(predicted: Tensor, truth: Tensor) -> float:
    return 100 * float((predicted == truth).double().mean())


def open_student(path: str) -> tuple[nn.Module, StudentDescription]:
    """Build a student.

    Args:
        path: Work directory of a run, checkpoint, or exported folder or file of weights.

    Returns:
        The classifier, which takes images in OpenCV's channel order, and its description.

    Raises:
        ConfigError: If there is no student, or it cannot be built.
    """
    if path.endswith(('.onnx', '.pt2')):
        raise ConfigError(
            f'student={path!r}: must not be a graph, whose features cannot be read; give the '
            'checkpoint, or an exported folder, .pth or .safetensors'
        )
    description, model = load_student(path)
    # Files are read as BGR; the run may have read arrays of RGB.
    model.data_preprocessor.to_rgb = description.channel_order != 'BGR'
    return model, description
