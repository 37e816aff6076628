"""Distillation for those who have two names and a folder of images."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from mldr_kd_mm.apis.configs import config_path
from mldr_kd_mm.apis.models import (
    NamedModel,
    config_names,
    fetch_pretrained,
    find_model,
    recipe_of,
    with_pretrained_weights,
)
from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.engine.launch import fit_to_machine, preflight, start
from mldr_kd_mm.utils.errors import (
    ConfigError,
    check_above_zero,
    check_positive,
    check_switch,
    is_number,
)

METHODS = '_base_/methods'
AUGMENTATIONS = ('recipe', 'light')
ACCURACY = 'val/accuracy/top1'

_LABEL_SMOOTHING = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
_MIXING = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
_FIELDS = ('model', 'train_cfg', 'optim_wrapper', 'train_dataloader', 'val_dataloader')
# The steps that an epoch has at least if the batch size is ours to choose, and the smallest batch.
_STEPS, _SMALLEST_BATCH = 16, 16


class Distilled(NamedTuple):
    """What came out.

    Attributes:
        work_dir: Where checkpoints and logs are.
        accuracy: Top-1 accuracy of the student after the last epoch, in percent.
        best_accuracy: The highest of all epochs.
        teacher_accuracy: That of the teacher.
        checkpoint: The last epoch's checkpoint, from which training can be resumed.
        student: The exported weights of the student after the last epoch.
    """

    work_dir: str
    accuracy: float
    best_accuracy: float
    teacher_accuracy: float | None
    checkpoint: str
    student: str


@dataclass(frozen=True)
class Distillation:
    """What :func:`distill` is told.

    Args:
        teacher: ``timm/NAME``, ``mmpretrain/NAME``, or a bare NAME, which is looked for in timm,
            then in ``configs/_base_/models``, then in mmpretrain. Or the path of a config or a
            dict, which are taken as they are.
        student: The same.
        data: A folder with ``train/`` and ``val/`` (or ``test/``) of one folder a class, or with
            the folders of the classes, of which a part is then held out.
        method: Name of a config in ``configs/_base_/methods``, path of another such file, or what
            one has as ``method``.
        epochs: How many the student is trained. The recipe's warm-up is shortened with them.
        teacher_checkpoint: Path, URL or ``hf-hub:`` name of a teacher of these classes. None: the
            teacher is trained first.
        teacher_epochs: How many it is trained then. None: as many as the student. 0: it is not,
            its pretrained weights are of the classes of the folder.
        teacher_pretrained: Whether its training begins with its pretrained weights.
        student_pretrained: Whether the student's does; in the papers' tables it does not.
        image_size: Height and width, in pixels, for both models. None: what each was made for.
        batch_size: None: 128, the recipes', or on a small folder less, down to 16, so that an epoch
            has 16 steps.
        lr: Learning rate of the student. None: the recipe's, scaled with the batch size.
        teacher_lr: That of the teacher. None: the same of its recipe.
        augmentation: ``recipe``: crops and flips, and for Transformers and the like mixing and
            more. ``light``: the whole image, shifted by up to an eighth, for writing and such.
        val_fraction: The part that is held out where there are no images to validate on.
        seed: Of the weights, the augmentation and that choice.
        workers: Processes that load images. None: one a core, up to 8.
        amp: Mixed precision. None: on a GPU.
        work_dir: None: ``work_dirs/TEACHER_to_STUDENT_METHOD``.

    Raises:
        ConfigError: If one is out of range.
    """

    teacher: str | dict
    student: str | dict
    data: str
    method: str | dict = 'mldr'
    epochs: int = 100
    _: dataclasses.KW_ONLY
    teacher_checkpoint: str | None = None
    teacher_epochs: int | None = None
    teacher_pretrained: bool = True
    student_pretrained: bool = False
    image_size: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    teacher_lr: float | None = None
    augmentation: str = 'recipe'
    val_fraction: float = 0.1
    seed: int = 0
    workers: int | None = None
    amp: bool | None = None
    work_dir: str | None = None

    def __post_init__(self) -> None:
        given = {
            name: getattr(self, name)
            for name in ('image_size', 'batch_size', 'teacher_epochs')
            if getattr(self, name)
        }
        check_positive(epochs=self.epochs, **given)
        check_switch(
            teacher_pretrained=self.teacher_pretrained, student_pretrained=self.student_pretrained
        )
        rates = dict(lr=self.lr, teacher_lr=self.teacher_lr)
        check_above_zero(**{name: rate for name, rate in rates.items() if rate is not None})
        for field in ('seed', 'workers'):
            value = getattr(self, field)
            if value is not None and not (is_number(value, int) and value >= 0):
                raise ConfigError(f'{field}={value!r}: must be a whole number of 0 or more')
        if self.augmentation not in AUGMENTATIONS:
            raise ConfigError(
                f'augmentation={self.augmentation!r}: must be one of {", ".join(AUGMENTATIONS)}'
            )
        if self.amp and not torch.cuda.is_available():
            raise ConfigError('amp=True: needs a GPU, and torch finds none: leave it out')

    @property
    def trains_teacher(self) -> bool:
        """Whether the teacher is trained on the folder before it teaches."""
        return self.teacher_checkpoint is None and self.teacher_epochs != 0

    def place(self, teacher: NamedModel, student: NamedModel) -> Path:
        """The work directory."""
        method = Path(self.method).stem if isinstance(self.method, str) else 'method'
        default = f'{teacher.name}_to_{student.name}_{method}'
        return Path(self.work_dir or Path('work_dirs', default))


def distill_config(
    teacher: str | dict,
    student: str | dict,
    data: str,
    method: str | dict = 'mldr',
    epochs: int = 100,
    **options: Any,
) -> Config:
    """The config that :func:`distill` trains.

    It is made of the bases in ``configs/_base_``: the runtime, the recipe for the student's kind of
    network, shortened to so many epochs, and the method. Its ``pretty_text`` is a config file that
    ``tools/train.py`` takes as it is. A teacher that :func:`distill` would train first must be
    there for it, at ``model.teacher_checkpoint``.

    Args:
        teacher: See :class:`Distillation`.
        student: The same.
        data: The same.
        method: The same.
        epochs: The same.
        **options: Its other fields.

    Raises:
        ConfigError: If an argument is wrong, or the folder of images.
    """
    asked = _ask(teacher, student, data, method, epochs, **options)
    train = _training_images(asked)
    return _student_config(asked, train, *_models(asked, len(train.CLASSES)))


def distill(
    teacher: str | dict,
    student: str | dict,
    data: str,
    method: str | dict = 'mldr',
    epochs: int = 100,
    *,
    resume: bool = False,
    **options: Any,
) -> Distilled:
    """Let a teacher teach a student on a folder of images.

    ::

        from mldr_kd_mm import distill

        result = distill(
            teacher='timm/vit_small_patch16_224', student='mobilenetv2_100', data='my/images',
            method='mldr', epochs=100)
        print(result.accuracy, result.student)

    A teacher without a ``teacher_checkpoint`` is first trained on the folder itself, from its
    pretrained weights: those know other classes.

    Args:
        teacher: See :class:`Distillation`.
        student: The same.
        data: The same.
        method: The same.
        epochs: The same.
        resume: Whether to go on from the last checkpoint in the work directory.
        **options: The other fields of :class:`Distillation`.

    Returns:
        Accuracies and paths.

    Raises:
        ConfigError: If an argument is wrong, or the folder of images, or the teacher is of other
            classes.
        FileNotFoundError: If there is no such checkpoint.
    """
    check_switch(resume=resume)
    asked = _ask(teacher, student, data, method, epochs, **options)
    train = _training_images(asked)
    teacher_model, student_model = _models(asked, len(train.CLASSES))
    cfg = _student_config(asked, train, teacher_model, student_model)
    if asked.trains_teacher:
        checkpoint = Path(cfg.model.teacher_checkpoint)
        # What does not fit the student is found before the teacher is trained.
        before = copy.deepcopy(cfg)
        before.model.teacher_checkpoint = None
        preflight(before, *_FIELDS)
        _train_teacher(asked, train, teacher_model, checkpoint, resume)
    hub = _train(cfg, resume).message_hub
    history = hub.log_scalars[ACCURACY].data[0]
    return Distilled(
        work_dir=cfg.work_dir,
        accuracy=float(history[-1]),
        best_accuracy=float(max(history)),
        teacher_accuracy=hub.runtime_info.get('teacher_metrics', {}).get('accuracy/top1'),
        checkpoint=hub.get_info('last_ckpt'),
        student=_export(hub.get_info('last_ckpt'), Path(cfg.work_dir, 'student.pth')),
    )


def _ask(*args: Any, **options: Any) -> Distillation:
    fields = [field.name for field in dataclasses.fields(Distillation)]
    for name in options:
        if name not in fields:
            raise ConfigError(f'distill() has no argument {name!r}: it takes {", ".join(fields)}')
    return Distillation(*args, **options)


def _training_images(asked: Distillation) -> ImageFolder:
    """The images to train on, once it is known that there are some to validate on."""
    if not isinstance(asked.data, (str, os.PathLike)):
        raise ConfigError(f'data={asked.data!r}: must be the path of a folder of images')
    settings = dict(data_root=str(asked.data), val_fraction=asked.val_fraction, seed=asked.seed)
    train, val = (ImageFolder(split=split, **settings) for split in ('train', 'val'))
    print_log(
        f'data={str(asked.data)!r}: {len(train.CLASSES)} classes, {len(train)} images to train on, '
        f'{len(val)} to validate on',
        'current',
    )
    return train


def _models(asked: Distillation, num_classes: int) -> tuple[NamedModel, NamedModel]:
    teacher, student = (
        find_model(getattr(asked, field), num_classes, asked.image_size, field)
        for field in ('teacher', 'student')
    )
    return teacher, student


def _student_config(
    asked: Distillation, train: ImageFolder, teacher: NamedModel, student: NamedModel
) -> Config:
    work_dir = asked.place(teacher, student)
    cfg = _run_config(asked, train, student, asked.epochs, work_dir, asked.lr)
    student_config = copy.deepcopy(student.config)
    if asked.student_pretrained:
        student_config = with_pretrained_weights(student, 'student')
    if student_config.get('type') == 'TimmClassifier':
        student_config.setdefault('loss', _LABEL_SMOOTHING)
    if recipe_of(student) != 'cnn' and asked.augmentation == 'recipe':
        student_config.setdefault('train_cfg', _MIXING)

    teacher_config = copy.deepcopy(teacher.config)
    checkpoint = asked.teacher_checkpoint
    if asked.trains_teacher:
        checkpoint = str(work_dir / 'teacher' / f'epoch_{asked.teacher_epochs or asked.epochs}.pth')
    elif checkpoint is None and isinstance(asked.teacher, str) and asked.teacher_pretrained:
        _check_classes(teacher, len(train.CLASSES))
        teacher_config = with_pretrained_weights(teacher, 'teacher')
    if teacher.normalization != student.normalization:
        teacher_config.setdefault('data_preprocessor', dict(teacher.normalization))
    cfg.model = dict(
        type='Distiller',
        teacher=teacher_config,
        teacher_checkpoint=checkpoint,
        student=student_config,
        input_size=(3, student.image_size, student.image_size),
        **_method(asked.method, len(train)),
    )
    if teacher.image_size != student.image_size:
        cfg.model.teacher_input_size = (3, teacher.image_size, teacher.image_size)
    return cfg


def _check_classes(teacher: NamedModel, num_classes: int) -> None:
    if teacher.pretrained_classes not in (None, num_classes):
        raise ConfigError(
            f'teacher_epochs=0: the pretrained weights of {teacher.name!r} are of '
            f'{teacher.pretrained_classes} classes, the folder has {num_classes}: leave '
            'teacher_epochs out to train it on the folder first, or give teacher_checkpoint'
        )


def _train_teacher(
    asked: Distillation, train: ImageFolder, teacher: NamedModel, checkpoint: Path, resume: bool
) -> None:
    """Train the teacher on the folder, unless a run that is resumed has done so."""
    if resume and checkpoint.is_file():
        return
    epochs = asked.teacher_epochs or asked.epochs
    print_log(
        f'teacher_checkpoint=None: {teacher.name} is trained on the folder first, for {epochs} '
        f'epochs; later runs can take {str(checkpoint)!r}',
        'current',
    )
    cfg = _run_config(asked, train, teacher, epochs, checkpoint.parent, asked.teacher_lr)
    cfg.model = copy.deepcopy(teacher.config)
    if recipe_of(teacher) != 'cnn' and asked.augmentation == 'recipe':
        cfg.model.setdefault('train_cfg', _MIXING)
    begun = resume and Path(cfg.work_dir, 'last_checkpoint').is_file()
    if asked.teacher_pretrained and isinstance(asked.teacher, str) and not begun:
        cfg.load_from = fetch_pretrained(teacher, checkpoint.parent / 'pretrained.pth', 'teacher')
    _train(cfg, resume)


def _run_config(
    asked: Distillation,
    train: ImageFolder,
    trained: NamedModel,
    epochs: int,
    work_dir: Path,
    lr: float | None,
) -> Config:
    """The config of a run, all but its model."""
    recipe = recipe_of(trained)
    batch_size = asked.batch_size or _batch_size(len(train))
    cfg = Config(
        {
            **_base('default_runtime'),
            **_base(f'schedules/{recipe}_300e'),
            **_data(asked, train, trained, recipe, batch_size),
        }
    )
    _shorten(cfg, epochs)
    _scale(cfg, batch_size, lr)
    cfg.randomness.seed = asked.seed
    cfg.work_dir = str(work_dir)
    if torch.cuda.is_available() if asked.amp is None else asked.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    return cfg


def _base(name: str) -> dict[str, Any]:
    return Config.fromfile(config_path(f'_base_/{name}.py')).to_dict()


def _batch_size(images: int) -> int:
    """The recipes' 128, or the power of two below that leaves an epoch enough steps."""
    size = 128
    while size > _SMALLEST_BATCH and images / size < _STEPS:
        size //= 2
    return size


def _data(
    asked: Distillation, train: ImageFolder, trained: NamedModel, recipe: str, batch_size: int
) -> dict[str, Any]:
    """The fields of a config that say what is seen, and how."""
    base = _base('datasets/folder_224')
    size = trained.image_size
    train_pipeline, test_pipeline = base['train_pipeline'], base['test_pipeline']
    if asked.augmentation == 'light':
        resize = dict(type='Resize', scale=(size, size), interpolation='bilinear')
        shift = dict(type='RandomCrop', crop_size=size, padding=size // 8)
        load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
        train_pipeline, test_pipeline = [load, resize, shift, pack], [load, resize, pack]
    else:
        if recipe != 'cnn':
            train_pipeline[-1:-1] = _base('datasets/strong_augmentation')['strong_augmentation']
        _resize(train_pipeline, size)
        _resize(test_pipeline, size)
    folder = dict(
        type='mldr_kd_mm.ImageFolder',
        data_root=str(asked.data),
        val_fraction=asked.val_fraction,
        seed=asked.seed,
    )
    workers = min(8, os.cpu_count()) if asked.workers is None else asked.workers
    loading = dict(batch_size=batch_size, num_workers=workers)
    val_dataloader = dict(
        base['val_dataloader'],
        **loading,
        dataset=dict(folder, split='val', pipeline=test_pipeline),
    )
    evaluator = dict(type='Accuracy', topk=(1, 5) if len(train.CLASSES) > 5 else (1,))
    return dict(
        data_preprocessor=dict(
            base['data_preprocessor'], num_classes=len(train.CLASSES), **trained.normalization
        ),
        train_dataloader=dict(
            base['train_dataloader'],
            **loading,
            # BatchNorm cannot be trained on a last batch of one.
            drop_last=len(train) % batch_size == 1,
            dataset=dict(folder, split='train', pipeline=train_pipeline),
        ),
        val_dataloader=val_dataloader,
        val_evaluator=evaluator,
        test_dataloader=copy.deepcopy(val_dataloader),
        test_evaluator=dict(evaluator),
    )


def _resize(pipeline: list[dict], size: int) -> None:
    """Bring a pipeline for images of 224 px to another size."""
    for step in pipeline:
        for field in ('scale', 'crop_size'):
            if field in step:
                step[field] = round(step[field] * size / 224)


def _shorten(cfg: Config, epochs: int) -> None:
    """Bring a recipe of a warm-up and a cosine to so many epochs.

    The warm-up ends no later than at an eighth of them, as in the shipped shorter recipes.
    """
    warm_up, cosine = cfg.param_scheduler
    begin = min(cosine.begin, epochs // 8)
    cosine.update(begin=begin, end=epochs, T_max=max(epochs - begin - 1, 1))
    warm_up.end = begin + 1
    cfg.param_scheduler = [warm_up, cosine] if begin else [cosine]
    cfg.train_cfg.max_epochs = epochs


def _scale(cfg: Config, batch_size: int, lr: float | None) -> None:
    """Scale the learning rates with the batch size, or to one that is given."""
    optimizer = cfg.optim_wrapper.optimizer
    scale = batch_size / cfg.auto_scale_lr.base_batch_size if lr is None else lr / optimizer.lr
    optimizer.lr *= scale
    cfg.param_scheduler[-1].eta_min *= scale
    cfg.auto_scale_lr.base_batch_size = batch_size


def _method(method: str | dict, images: int) -> dict[str, Any]:
    """What a method adds to the model."""
    if isinstance(method, str):
        method = _read_method(method)
    if not isinstance(method, Mapping) or not isinstance(method.get('losses'), (list, tuple)):
        raise ConfigError(f'method={method!r}: must be a name, a path, or a dict with losses')
    method = copy.deepcopy(dict(method))
    for comparison in method['losses']:
        loss = comparison.get('loss', {})
        if loss.get('type') == 'CRDLoss':
            loss.update(num_samples=images, negatives=min(loss['negatives'], images - 1))
    return method


def _read_method(name: str) -> dict[str, Any]:
    if name in config_names(METHODS):
        path = config_path(f'{METHODS}/{name}.py')
    elif name.endswith('.py') and Path(name).is_file():
        path = name
    else:
        raise ConfigError(
            f'method={name!r}: must be one of {", ".join(config_names(METHODS))}, or the path of a '
            'file with method = dict(losses=...)'
        )
    method = Config.fromfile(path).get('method')
    return method and method.to_dict()


def _train(cfg: Config, resume: bool) -> Runner:
    """Train what a config describes, in this process."""
    # mmengine reuses the logger of a run of the same name and second.
    cfg.experiment_name = Path(cfg.work_dir).name
    cfg.resume = resume
    fit_to_machine(cfg)
    preflight(cfg, *_FIELDS)
    return start(cfg, 'train')


def _export(checkpoint: str, path: Path) -> str:
    """Write the student's weights; those of an earlier run in this place make room."""
    from mldr_kd_mm.apis.export import export_student

    for file in (path, path.with_suffix('.md')):
        file.unlink(missing_ok=True)
    export_student(checkpoint, str(path))
    return str(path)
