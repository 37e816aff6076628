"""Measure the kNN and the linear-probe accuracy of a student's features."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.predict import load_student
from mldr_kd_mm.apis.student_images import steps_for_files
from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.evaluation.knn import NEIGHBOURS, KNNClassifier, embed_all, embedder
from mldr_kd_mm.evaluation.linear_probe import LinearProbe
from mldr_kd_mm.evaluation.logged_run import find_checkpoints
from mldr_kd_mm.utils.checkpoint import local_file
from mldr_kd_mm.utils.errors import ConfigError, check_count, check_positive
from mldr_kd_mm.utils.progress import track
from mldr_kd_mm.utils.run_identity import Origin
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
    val_fraction: float = 0.1,
    seed: int = 0,
    batch_size: int = 128,
    workers: int | None = None,
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
        seed: Seed of the choice of the held-out images.
        batch_size: Images per batch.
        workers: Number of processes that load images. None: one per core, at most 8.

    Returns:
        The accuracies.

    Raises:
        ConfigError: If the student cannot be built, or the folder does not have images of at least
            two classes.
    """
    check_positive(batch_size=batch_size)
    workers = default_workers() if workers is None else workers
    check_count(workers=workers)
    model, description = open_student(student)
    scope = default_scope(dict(default_scope=description.default_scope))
    with DefaultScope.overwrite_default_scope(scope), registered_names_only():
        pipeline = check_types(steps_for_files(description), 'pipeline')
        folder = dict(data_root=data, val_fraction=val_fraction, seed=seed, pipeline=pipeline)
        images = [ImageFolder(split=split, **folder) for split in ('train', 'val')]
    loaders = [
        DataLoader(part, batch_size, num_workers=workers, collate_fn=pseudo_collate)
        for part in images
    ]
    knn, linear = measure(model, loaders)
    return Probed(knn, linear, *map(len, images))


def measure(model: nn.Module, loaders: Sequence[DataLoader]) -> tuple[float, float]:
    """Classify images by the features of a model.

    Args:
        model: The classifier; it is moved to the GPU, if there is one.
        loaders: Loaders of the training and of the validation images.

    Returns:
        The kNN and the linear-probe accuracy, in percent.

    Raises:
        ConfigError: If a feature is not finite.
    """
    model = model.to('cuda' if torch.cuda.is_available() else 'cpu').eval()
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
    if os.path.isdir(path) and not local_file(path).is_file():
        checkpoints = (file for file in find_checkpoints(Path(path)) if Origin.read(file))
        found = next(checkpoints, None)
        if found is None:
            raise ConfigError(
                f'student={path!r}: must be a file, an exported folder, or the work directory of a '
                'run'
            )
        path = str(found)
    description, model = load_student(path)
    # Files are read as BGR; the run may have read arrays of RGB.
    model.data_preprocessor.to_rgb = description.channel_order != 'BGR'
    return model, description
