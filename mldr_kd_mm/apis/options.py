"""Options of :func:`mldr_kd_mm.distill`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mldr_kd_mm.apis.configs import SCRATCH, needs_head
from mldr_kd_mm.datasets.splits import skip_wrappers
from mldr_kd_mm.datasets.unlabeled import check_ratio
from mldr_kd_mm.utils.archive import unpack_zip
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_above_zero,
    check_choice,
    check_count,
    check_positive,
    check_switch,
    describe,
)
from mldr_kd_mm.utils.logging import tell

AUGMENTATIONS = ('recipe', 'light')
VISUALIZERS = {
    'tensorboard': dict(type='TensorboardVisBackend'),
    'wandb': dict(type='WandbVisBackend'),
    'mlflow': dict(
        type='MLflowVisBackend',
        exp_name='mldr-kd',
        # MLflow refuses long values, such as those of a pipeline.
        tracked_config_keys=['optim_wrapper', 'train_cfg', 'randomness'],
    ),
}
"""Name of a tracking package -> the backend of mmengine's visualizer that logs to it."""


@dataclass(frozen=True)
class Options:
    """Checked arguments of :func:`mldr_kd_mm.distill`, which documents them.

    Raises:
        ConfigError: If one is out of range.
    """

    teacher: str | dict | nn.Module
    student: str | dict | nn.Module
    data: str | None = None
    method: str | dict = 'mldr_rsd'
    epochs: int = 100
    _: dataclasses.KW_ONLY
    unlabeled: str | None = None
    unlabeled_ratio: float | None = None
    teacher_checkpoint: str | None = None
    teacher_init: str | None = None
    teacher_epochs: int | None = None
    teacher_pretrained: bool = True
    student_pretrained: bool = False
    image_size: int | None = None
    teacher_size: int | None = None
    student_size: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    teacher_lr: float | None = None
    clip_grad: float | None = None
    augmentation: str = 'recipe'
    val_fraction: float | None = None
    seed: int = 0
    workers: int | None = None
    amp: bool | None = None
    visualizer: str | None = None
    work_dir: str | None = None

    def __post_init__(self) -> None:
        given = {
            name: getattr(self, name)
            for name in ('image_size', 'teacher_size', 'student_size', 'batch_size')
            if getattr(self, name) is not None
        }
        if self.teacher_epochs:
            given['teacher_epochs'] = self.teacher_epochs
        check_positive(epochs=self.epochs, **given)
        check_switch(
            teacher_pretrained=self.teacher_pretrained, student_pretrained=self.student_pretrained
        )
        self._check_teacher()
        rates = dict(lr=self.lr, teacher_lr=self.teacher_lr, clip_grad=self.clip_grad)
        check_above_zero(**{name: rate for name, rate in rates.items() if rate is not None})
        counts = dict(seed=self.seed, workers=self.workers)
        check_count(**{name: count for name, count in counts.items() if count is not None})
        check_choice(AUGMENTATIONS, augmentation=self.augmentation)
        if self.visualizer is not None:
            check_choice(tuple(VISUALIZERS), visualizer=self.visualizer)
            if importlib.util.find_spec(self.visualizer) is None:
                raise ConfigError(
                    f'visualizer={self.visualizer!r}: is not installed; run pip install '
                    f'{self.visualizer}'
                )
        self._check_images()
        if not isinstance(self.method, (str, Mapping)) or self.method == SCRATCH:
            raise ConfigError(
                f'method={self.method!r}: must be a name, a path, or a dict with losses'
            )
        if self.amp and not torch.cuda.is_available():
            raise ConfigError('amp=True: needs a GPU, but torch finds none; leave it out')

    def _check_images(self) -> None:
        if self.data is None and self.unlabeled is None:
            raise ConfigError(
                'data: must be the path of a folder or a zip file of images, unless unlabeled '
                'gives images without labels'
            )
        for field in ('data', 'unlabeled'):
            value = getattr(self, field)
            if value is not None and not isinstance(value, (str, os.PathLike)):
                listed = ', or of a text file of their paths' if field == 'unlabeled' else ''
                raise ConfigError(
                    f'{field}={value!r}: must be the path of a folder or a zip file of images'
                    f'{listed}'
                )
        if self.unlabeled_ratio is not None:
            check_ratio(self.unlabeled_ratio)
            if self.data is None or self.unlabeled is None:
                raise ConfigError(
                    f'unlabeled_ratio={self.unlabeled_ratio!r}: must not be set without both data '
                    'and unlabeled, which it mixes'
                )

    def _check_teacher(self) -> None:
        """Refuse options for the training of a teacher that is not trained."""
        if self.trains_teacher:
            return
        has_weights = self.teacher_checkpoint is not None or self.teacher_pretrained
        if not self.has_head and isinstance(self.teacher, str) and not has_weights:
            raise ConfigError(
                'teacher_pretrained=False: must not be set without teacher_checkpoint, as '
                f'method={self.method!r} does not train the teacher'
            )
        if self.teacher_checkpoint is not None:
            reason = 'teacher_checkpoint'
        elif not self.has_head:
            reason = f'method={self.method!r} compares features without labels'
        else:
            reason = 'teacher_epochs=0' if self.teacher_epochs == 0 else 'a module is the teacher'
        for field in ('teacher_init', 'teacher_lr', 'teacher_epochs'):
            value = getattr(self, field)
            if value:
                raise ConfigError(
                    f'{field}={value!r}: must not be set, as the teacher is not trained ({reason})'
                )

    @functools.cached_property
    def has_head(self) -> bool:
        """Whether teacher and student predict the classes of the folder."""
        return needs_head(self.method)

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher is trained on the folder first."""
        if self.teacher_checkpoint is not None or self.teacher_epochs == 0 or not self.has_head:
            return False
        # A module that the user has built has weights.
        return self.teacher_epochs is not None or not isinstance(self.teacher, nn.Module)

    @property
    def epochs_of_teacher(self) -> int:
        """Number of epochs for which the teacher is trained first."""
        return self.teacher_epochs or self.epochs


def parse_options(*args: Any, **options: Any) -> Options:
    """Return the options that :func:`mldr_kd_mm.distill` was called with.

    Raises:
        ConfigError: If one is unknown or out of range.
    """
    fields = [field.name for field in dataclasses.fields(Options)]
    for name in options:
        if name not in fields:
            raise ConfigError(f'distill() has no argument {name!r}; it takes {", ".join(fields)}')
    parsed = Options(*args, **options)
    folders = {field: _unpack(parsed, field) for field in ('data', 'unlabeled')}
    return dataclasses.replace(parsed, **folders)


def _unpack(options: Options, field: str) -> str | None:
    """Unpack a zip file of images once; return the path of the folder, or of what is given."""
    given = getattr(options, field)
    if given is None:
        return None
    path = Path(given).expanduser()
    is_zip = path.is_file() and zipfile.is_zipfile(path)
    if not is_zip and (field == 'unlabeled' or not path.is_file()):
        return str(given)
    if not is_zip:
        raise ConfigError(f'{field}={str(path)!r}: must be a folder or a zip file of images')
    try:
        folder = skip_wrappers(unpack_zip(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'{field}={str(path)!r}: cannot be unpacked: {describe(error)}; unpack it yourself and '
            'give the folder'
        ) from error
    tell(f'{field}={str(path)!r}: unpacked, reading {str(folder)!r}')
    return str(folder)
