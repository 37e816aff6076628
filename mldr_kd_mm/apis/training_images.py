"""Read the images that :func:`mldr_kd_mm.distill` trains and validates on."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from mldr_kd_mm.apis.models import find_model
from mldr_kd_mm.apis.options import Options
from mldr_kd_mm.datasets import ImageFolder, UnlabeledFolder
from mldr_kd_mm.datasets.splits import find_split_folders
from mldr_kd_mm.datasets.unlabeled import mixed_length
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.weights import count_classes
from mldr_kd_mm.utils.checkpoint import class_names, load_checkpoint
from mldr_kd_mm.utils.errors import ConfigError, named
from mldr_kd_mm.utils.logging import log_warnings_only, plural, tell

_ANY_NUMBER = 1000  # of classes, of a model that is built to find its own number


@dataclass(frozen=True)
class TrainingImages:
    """The images of a run.

    Attributes:
        labeled: The labelled training images; None if there are none.
        val: The validation images; None if there are none.
        unlabeled: The training images without labels; None if there are none.
        classes: Names of the classes; empty if they are not known.
        num_classes: Number of classes.
        unlabeled_ratio: Fraction of unlabelled images in a batch; None without both kinds.
    """

    labeled: ImageFolder | None
    val: ImageFolder | None
    unlabeled: UnlabeledFolder | None
    classes: tuple[str, ...]
    num_classes: int
    unlabeled_ratio: float | None = None

    @property
    def num_samples(self) -> int:
        """Number of training images."""
        return sum(len(part) for part in (self.labeled, self.unlabeled) if part is not None)

    @property
    def epoch_length(self) -> int:
        """Number of images in an epoch, on one process."""
        if self.unlabeled is None:
            return len(self.labeled)
        if self.labeled is None:
            return len(self.unlabeled)
        return mixed_length(len(self.labeled), self.unlabeled_ratio)


def read_training_images(options: Options) -> TrainingImages:
    """Return the images, after checking that there are validation images if labels are given.

    Raises:
        ConfigError: If the folder of labelled images does not hold at least two classes, that of
            unlabelled ones no image, or the classes of the teacher are not known.
    """
    labeled, val = _read_labeled(options)
    if labeled is None and options.trains_teacher:
        raise ConfigError(
            'teacher_checkpoint: must be set without labelled images to train the teacher on; '
            'for pretrained weights of your classes, set teacher_epochs=0'
        )
    if labeled is None and val is not None and not options.has_head:
        raise ConfigError(
            f'data={str(options.data)!r}: must have training images, too, as '
            f'method={options.method!r} validates by their nearest neighbours'
        )
    unlabeled = _read_unlabeled(options)
    if val is not None:
        classes, count = tuple(val.CLASSES), len(val.CLASSES)
    else:
        classes, count = _classes_of_teacher(options)
    ratio = None
    if labeled is not None and unlabeled is not None:
        # By default no image is shown twice in an epoch.
        share = len(unlabeled) / (len(labeled) + len(unlabeled))
        ratio = options.unlabeled_ratio or max(min(0.5, share), 1e-4)
    if unlabeled is not None:
        part = '' if ratio is None else f', {100 * ratio:.4g} % of each batch'
        tell(f'unlabeled={options.unlabeled!r}: {plural(len(unlabeled), "image")}{part}')
    if val is None:
        tell(
            'no validation images: the accuracy is not measured; to measure it, add labelled '
            'images in val/CLASS/'
        )
    return TrainingImages(labeled, val, unlabeled, classes, count, ratio)


def _read_labeled(options: Options) -> tuple[ImageFolder | None, ImageFolder | None]:
    """Return the training and the validation images of ``data``."""
    if options.data is None:
        return None, None
    choice = held_out_options(options.data, val_fraction=options.val_fraction)
    settings = dict(data_root=str(options.data), seed=options.seed, **choice)
    root = Path(options.data).expanduser()
    has_training = options.unlabeled is None or find_split_folders(root).train is not None
    train = ImageFolder(split='train', **settings) if has_training else None
    val = ImageFolder(split='val', **settings)
    source = f'from {val.val_folder.name}/' if val.val_folder else 'held out of them'
    tell(
        f'data={str(options.data)!r}: {len(val.CLASSES)} classes, {len(train or ())} training '
        f'images, {len(val)} validation images {source}'
    )
    return train, val


def held_out_options(data: str | Path, **options: float | None) -> dict[str, float]:
    """Return those options that choose the held-out images of a folder and are not None.

    Args:
        data: The folder.
        **options: Arguments of :class:`~mldr_kd_mm.datasets.ImageFolder`.

    Raises:
        ConfigError: There are some, and the folder has validation images of its own.
    """
    given = {name: value for name, value in options.items() if value is not None}
    folder = find_split_folders(Path(data).expanduser()).val
    if given and folder is not None:
        name, value = next(iter(given.items()))
        raise ConfigError(
            f'{name}={value!r}: must not be set, as no images of the folder are held out: it has '
            f'{folder.name}/'
        )
    return given


def _read_unlabeled(options: Options) -> UnlabeledFolder | None:
    if options.unlabeled is None:
        return None
    try:
        return UnlabeledFolder(**unlabeled_fields(options))
    except ConfigError as error:
        raise ConfigError(re.sub('^(data_root|ann_file)', 'unlabeled', str(error))) from error


def unlabeled_fields(options: Options) -> dict[str, str]:
    """Return the fields of an ``UnlabeledFolder`` that name the images."""
    is_list = Path(options.unlabeled).expanduser().is_file()
    return {'ann_file' if is_list else 'data_root': str(options.unlabeled)}


def _classes_of_teacher(options: Options) -> tuple[tuple[str, ...], int]:
    """Return the names of the teacher's classes, none if they are not known, and their number.

    Raises:
        ConfigError: The number is not known either.
    """
    if not options.has_head:
        return (), _ANY_NUMBER  # heads of any size are removed
    checkpoint, size = options.teacher_checkpoint, options.teacher_size or options.image_size
    content = load_checkpoint(checkpoint, 'teacher_checkpoint') if checkpoint else {}
    if names := class_names(content, checkpoint):
        return names, len(names)
    teacher = find_model(options.teacher, _ANY_NUMBER, size, 'teacher')
    if checkpoint is None and teacher.pretrained_classes is not None:
        return (), teacher.pretrained_classes
    with torch.random.fork_rng(devices=[]), log_warnings_only(), named('teacher'):
        model = build_classifier(copy.deepcopy(teacher.config)).eval()
        if checkpoint is not None:
            count = count_classes(model, content, f'teacher_checkpoint={checkpoint!r}')
        else:
            with torch.no_grad():
                images = torch.zeros(1, 3, teacher.image_size, teacher.image_size)
                count = model(images, mode='tensor').shape[1]
    if count is None:
        raise ConfigError(
            f'teacher_checkpoint={checkpoint!r}: does not state the number of classes; give '
            'data=FOLDER with val/CLASS/'
        )
    return (), count
