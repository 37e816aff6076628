"""Turn the options of :func:`mldr_kd_mm.distill` into configs of training runs."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from mldr_kd_mm.apis.configs import compose, config_path, student_alone
from mldr_kd_mm.apis.models import NamedModel, find_model, recipe_of, with_pretrained_weights
from mldr_kd_mm.apis.options import VISUALIZERS, Options
from mldr_kd_mm.apis.training_images import TrainingImages, unlabeled_fields
from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.engine.arguments import leaves_one, set_gradient_clipping, set_learning_rate
from mldr_kd_mm.models.data_preprocessor import own_statistics
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.workers import default_workers

_LABEL_SMOOTHING = dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')
_MIXING = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
# The default batch size is reduced until an epoch has this many steps, but not below this size.
_MIN_STEPS, _MIN_BATCH_SIZE = 16, 16
# Learning rates grow with the batch size up to this multiple of the recipes' 128. Linear scaling
# fails for large batches, and an epoch of a folder has few steps then.
_MAX_LR_SCALE = 4


def find_models(options: Options, num_classes: int) -> tuple[NamedModel, NamedModel]:
    """Return the teacher and the student.

    Raises:
        ConfigError: If one does not exist, or cannot be built without its head.
    """
    for field, model in (('teacher', options.teacher), ('student', options.student)):
        is_other_library = isinstance(model, str) and model.startswith(('hf/', 'torchvision/'))
        if is_other_library and not options.has_head:
            raise ConfigError(
                f'{field}={model!r}: cannot be built without its head; use a model of timm or '
                'mmpretrain, or a ModuleClassifier with has_head=False'
            )
    sizes = dict(teacher=options.teacher_size, student=options.student_size)
    teacher, student = (
        find_model(getattr(options, field), num_classes, size or options.image_size, field)
        for field, size in sizes.items()
    )
    return teacher, student


def default_work_dir(options: Options, teacher: NamedModel, student: NamedModel) -> Path:
    """Return the work directory of a run whose options do not set one."""
    method = Path(options.method).stem if isinstance(options.method, str) else 'method'
    return Path('work_dirs', f'{teacher.name}_to_{student.name}_{method}')


def student_config(
    options: Options, images: TrainingImages, teacher: NamedModel, student: NamedModel
) -> Config:
    """Return the config of the distillation run.

    Args:
        options: The options.
        images: The images.
        teacher: The teacher.
        student: The student.

    Raises:
        ConfigError: If the method is invalid, or the teacher's pretrained weights do not fit.
    """
    work_dir = Path(options.work_dir or default_work_dir(options, teacher, student))
    cfg = _run_config(options, images, student, options.epochs, work_dir, options.lr)
    if options.clip_grad is not None:
        set_gradient_clipping(cfg, options.clip_grad)
    elif 'clip_grad' not in cfg.optim_wrapper:
        # The CNN recipe does not clip, and heads can diverge at high rates (docs/stability.md).
        cfg.custom_hooks = [dict(type='mldr_kd_mm.AdaptiveClipHook')]
    cfg.model = dict(
        type='Distiller',
        **_teacher_fields(options, images.num_classes, teacher, student, work_dir),
        student=_student_model(options, student),
        input_size=(3, student.image_size, student.image_size),
    )
    return compose(cfg, options.method, num_samples=images.num_samples)


def teacher_config(
    options: Options, images: TrainingImages, teacher: NamedModel, cfg: Config
) -> Config:
    """Return the config of the run that trains the teacher first.

    Args:
        options: The options.
        images: The images.
        teacher: The teacher.
        cfg: The config of the distillation run, which reads the teacher's checkpoint.
    """
    work_dir = Path(cfg.model.teacher_checkpoint).parent
    images = dataclasses.replace(images, unlabeled=None)
    cfg = _run_config(
        options, images, teacher, options.epochs_of_teacher, work_dir, options.teacher_lr
    )
    cfg.model = copy.deepcopy(teacher.config)
    if teacher.reads_bgr:
        own = {**cfg.data_preprocessor, **teacher.normalization}
        cfg.model.setdefault('data_preprocessor', own)
    cfg.load_from = options.teacher_init
    if _mixes_images(options, teacher):
        cfg.model.setdefault('train_cfg', _MIXING)
    return cfg


def baseline_config(cfg: Config) -> Config:
    """Return the config of the run that trains the student alone, under the same recipe.

    It is trained on the labelled images.

    Args:
        cfg: The config of the distillation run.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model = student_alone(cfg)
    dataset = cfg.train_dataloader.dataset
    if 'labeled' in dataset:
        cfg.train_dataloader.dataset = dataset.labeled
        cfg.train_dataloader.sampler = dict(type='mldr_kd_mm.ViewSampler', shuffle=True)
    cfg.work_dir = str(Path(cfg.work_dir, 'baseline'))
    return cfg


def _student_model(options: Options, student: NamedModel) -> dict[str, Any]:
    model = copy.deepcopy(student.config)
    if options.student_pretrained:
        model = with_pretrained_weights(student, 'student')
    wrappers = ('TimmClassifier', 'HuggingFaceClassifier', 'BuiltClassifier', 'ModuleClassifier')
    if model.get('type') in wrappers and options.has_head:
        model.setdefault('loss', _LABEL_SMOOTHING)
    if _mixes_images(options, student):
        model.setdefault('train_cfg', _MIXING)
    if student.reads_bgr:
        model.setdefault('data_preprocessor', dict(student.normalization))
    return model


def _teacher_fields(
    options: Options, num_classes: int, teacher: NamedModel, student: NamedModel, work_dir: Path
) -> dict[str, Any]:
    """Return the fields of a Distiller that describe the teacher."""
    model = copy.deepcopy(teacher.config)
    checkpoint = options.teacher_checkpoint
    if options.trains_teacher:
        checkpoint = str(work_dir / 'teacher' / f'epoch_{options.epochs_of_teacher}.pth')
    elif checkpoint is None and isinstance(options.teacher, str) and options.teacher_pretrained:
        if options.has_head:
            _check_pretrained_classes(teacher, num_classes)
        model = with_pretrained_weights(teacher, 'teacher')
    is_stated = checkpoint is not None and own_statistics(model, checkpoint) is not None
    if teacher.normalization != student.shared_normalization and not is_stated:
        model.setdefault('data_preprocessor', dict(teacher.normalization))
    fields = dict(teacher=model, teacher_checkpoint=checkpoint)
    if teacher.image_size != student.image_size:
        fields['teacher_input_size'] = (3, teacher.image_size, teacher.image_size)
    return fields


def _check_pretrained_classes(teacher: NamedModel, num_classes: int) -> None:
    if teacher.pretrained_classes not in (None, num_classes):
        raise ConfigError(
            f'teacher_epochs=0: the pretrained weights of {teacher.name!r} have '
            f'{teacher.pretrained_classes} classes, the folder has {num_classes}; leave '
            'teacher_epochs out to train the teacher on the folder first, or give '
            'teacher_checkpoint'
        )


def _mixes_images(options: Options, model: NamedModel) -> bool:
    """Whether training uses mixup and cutmix, which belong to the Transformer recipe."""
    # Mixing needs labels, which a student without a head does not learn.
    is_allowed = options.augmentation == 'recipe' and options.has_head
    return is_allowed and recipe_of(model) != 'cnn'


def _run_config(
    options: Options,
    images: TrainingImages,
    trained: NamedModel,
    epochs: int,
    work_dir: Path,
    lr: float | None,
) -> Config:
    """Return the config of a run without its model."""
    recipe = recipe_of(trained)
    batch_size = _batch_size(options, images.epoch_length)
    cfg = Config(
        {
            **_base('default_runtime'),
            **_base(f'schedules/{recipe}_300e'),
            **_data_fields(options, images, trained, recipe, batch_size),
        }
    )
    _set_epochs(cfg, epochs)
    _scale_lr(cfg, batch_size, lr)
    cfg.randomness.seed = options.seed
    if options.visualizer is not None:
        cfg.visualizer.vis_backends.append(_vis_backend(options.visualizer, work_dir))
    cfg.work_dir = str(work_dir)
    if torch.cuda.is_available() if options.amp is None else options.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    return cfg


def _vis_backend(name: str, work_dir: Path) -> dict[str, Any]:
    backend = dict(VISUALIZERS[name])
    if name == 'wandb':
        backend['init_kwargs'] = dict(project='mldr-kd', name=str(work_dir))
    elif name == 'mlflow':
        # MLflow no longer accepts mmengine's default, a folder. This file is MLflow's own default.
        uri = os.environ.get('MLFLOW_TRACKING_URI', 'sqlite:///mlflow.db')
        backend |= dict(run_name=str(work_dir), tracking_uri=uri)
    return backend


def _base(name: str) -> dict[str, Any]:
    return Config.fromfile(config_path(f'_base_/{name}.py')).to_dict()


def _batch_size(options: Options, images: int) -> int:
    """Return the number of images in a batch, at most all."""
    if options.batch_size is None:
        return _default_batch_size(images)
    if options.batch_size > images:
        print_log(
            f'batch_size={options.batch_size}: there are {images} training images, so a batch and '
            'an epoch are these',
            'current',
            logging.WARNING,
        )
    return min(options.batch_size, images)


def _default_batch_size(images: int) -> int:
    """Return the recipes' 128, or a smaller power of two that gives an epoch enough steps."""
    size = 128
    while size > _MIN_BATCH_SIZE and images / size < _MIN_STEPS:
        size //= 2
    return size


def _data_fields(
    options: Options, images: TrainingImages, trained: NamedModel, recipe: str, batch_size: int
) -> dict[str, Any]:
    """Return the fields of a config that describe data, augmentation and validation."""
    base = _base('datasets/folder_224')
    train_pipeline, test_pipeline = _pipelines(options, base, trained.image_size, recipe)
    workers = default_workers() if options.workers is None else options.workers
    loading = dict(batch_size=batch_size, num_workers=workers)
    train_dataloader = dict(
        base['train_dataloader'],
        **loading,
        drop_last=leaves_one(images.epoch_length, batch_size),
        dataset=_training_set(options, images, train_pipeline),
    )
    if images.labeled is not None and images.unlabeled is not None:
        train_dataloader['sampler'] = dict(
            type='mldr_kd_mm.MixedSampler', unlabeled_ratio=images.unlabeled_ratio
        )
    fields = dict(
        data_preprocessor=dict(
            base['data_preprocessor'],
            num_classes=images.num_classes,
            **trained.shared_normalization,
        ),
        train_dataloader=train_dataloader,
    )
    if images.val is None:
        parts = ('dataloader', 'cfg', 'evaluator')
        nothing = {f'{group}_{part}': None for group in ('val', 'test') for part in parts}
        # An exported student reads its preprocessing from here.
        return fields | nothing | dict(test_pipeline=test_pipeline)
    folder = _labeled_folder(images.val, options, 'val', test_pipeline)
    val_dataloader = dict(base['val_dataloader'], **loading, dataset=folder)
    evaluator = dict(type='Accuracy', topk=(1, 5) if images.num_classes > 5 else (1,))
    return fields | dict(
        val_dataloader=val_dataloader,
        val_evaluator=evaluator,
        test_dataloader=copy.deepcopy(val_dataloader),
        test_evaluator=dict(evaluator),
    )


def _training_set(options: Options, images: TrainingImages, pipeline: list[dict]) -> dict[str, Any]:
    """Return the config of the training set: labelled images, unlabelled ones or both."""
    if images.labeled is not None:
        labeled = _labeled_folder(images.labeled, options, 'train', pipeline)
    if images.unlabeled is None:
        return labeled
    unlabeled = dict(
        type='mldr_kd_mm.UnlabeledFolder', **unlabeled_fields(options), pipeline=pipeline
    )
    if images.labeled is not None:
        return dict(type='mldr_kd_mm.MixedDataset', labeled=labeled, unlabeled=unlabeled)
    if images.classes:
        unlabeled['metainfo'] = dict(classes=images.classes)
    return unlabeled


def _labeled_folder(
    folder: ImageFolder, options: Options, split: str, pipeline: list[dict]
) -> dict[str, Any]:
    """Return the config of a part of the labelled images."""
    held_out = dict(val_fraction=folder.val_fraction, seed=folder.seed)
    return dict(
        type='mldr_kd_mm.ImageFolder',
        data_root=str(options.data),
        **({} if folder.val_folder else held_out),
        split=split,
        pipeline=pipeline,
    )


def _pipelines(
    options: Options, base: dict[str, Any], size: int, recipe: str
) -> tuple[list[dict], list[dict]]:
    """Return the training and test pipelines for an image size.

    Validation images are resized with Pillow, as timm's transforms do, so that the exported student
    makes the same predictions there.
    """
    if options.augmentation == 'light':
        resize = dict(type='Resize', scale=(size, size), backend='pillow')
        shift = dict(type='RandomCrop', crop_size=size, padding=size // 8)
        load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
        return [load, resize, shift, pack], [load, resize, pack]
    train, test = base['train_pipeline'], base['test_pipeline']
    if recipe != 'cnn':
        train[-1:-1] = _base('datasets/strong_augmentation')['strong_augmentation']
    _resize(train, size)
    _resize(test, size)
    for step in test:
        if step['type'] == 'ResizeEdge':
            step['backend'] = 'pillow'
    return train, test


def _resize(pipeline: list[dict], size: int) -> None:
    """Adapt a pipeline for 224 px to another image size."""
    for step in pipeline:
        for field in ('scale', 'crop_size'):
            if field in step:
                step[field] = round(step[field] * size / 224)


def _set_epochs(cfg: Config, epochs: int) -> None:
    """Fit a recipe with a warm-up and a cosine schedule to a number of epochs.

    The warm-up takes at most an eighth of the epochs, as in the shorter shipped recipes.
    """
    warm_up, cosine = cfg.param_scheduler
    begin = min(cosine.begin, epochs // 8)
    cosine.update(begin=begin, end=epochs, T_max=max(epochs - begin - 1, 1))
    warm_up.end = begin + 1
    cfg.param_scheduler = [warm_up, cosine] if begin else [cosine]
    cfg.train_cfg.max_epochs = epochs


def _scale_lr(cfg: Config, batch_size: int, lr: float | None) -> None:
    """Scale the learning rates to the batch size, or to a given learning rate."""
    scale = batch_size / cfg.auto_scale_lr.base_batch_size
    if lr is None and scale > _MAX_LR_SCALE:
        limit = _MAX_LR_SCALE * cfg.auto_scale_lr.base_batch_size
        scale = _MAX_LR_SCALE
        print_log(
            f'batch_size={batch_size}: the learning rate is scaled as for {limit}, because larger '
            'ones often diverge; set it to use another',
            'current',
            logging.WARNING,
        )
    set_learning_rate(cfg, cfg.optim_wrapper.optimizer.lr * scale if lr is None else lr)
    cfg.auto_scale_lr.base_batch_size = batch_size
