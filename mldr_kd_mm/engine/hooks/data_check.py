"""Checks of the data of a run before its first step."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from mldr_kd_mm.datasets import ImageFolder, MixedDataset, UnlabeledFolder
from mldr_kd_mm.datasets.folder import FolderDataset
from mldr_kd_mm.datasets.samples import has_links, iter_parts, real_paths
from mldr_kd_mm.engine.schedules import check_units, warn_of_cut_off
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.losses import CRDLoss
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.utils.atomic_files import atomic_write
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, printable
from mldr_kd_mm.utils.limits import MAX_LOG_BYTES, read_text
from mldr_kd_mm.utils.logging import plural

RECORD = 'split.json'
"""Name of the file in a work directory that lists the images of both splits."""


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Checks the data of a run before its first step.

    - The run has at least one step.
    - Training and validation set have the same classes in the same order, and so have a checkpoint
      and the set that it is tested on.
    - A teacher has the classes of the data in their order. Other names are a warning.
    - No image is in both the training and the validation folder; if the validation set has
      ``split='train'``, it is a warning.
    - If images have no label, the model is a Distiller whose losses need none.
    - A loss that stores an entry for each training image (CRD) has as many as there are images.
    - With ``auto_scale_lr.enable``, the batch is not larger than the training set.
    - A batch size, over all processes and accumulated steps, that differs from the one that the
      learning rate is for (``auto_scale_lr.base_batch_size``) is a warning.
    - A run that ends before its learning-rate schedule, above all in the warm-up, is a warning.
    - If the run counts iterations, its schedules do, too. Checkpoints that count epochs are a
      warning, as they are saved only at the end.
    - Images that :class:`~mldr_kd_mm.datasets.ImageFolder` holds out are recorded in
      ``split.json`` in the work directory. In a resumed run, no image that was trained is now in
      the validation set. A teacher that was trained on images of the validation set is a warning.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Check the data.

        Raises:
            ConfigError: A check fails. Raised on all ranks.
        """
        loader = runner.train_dataloader
        check_steps(loader)
        if runner.max_iters < 1:
            raise ConfigError(
                'train_cfg: the run has no training step; raise max_epochs, max_iters'
            )
        scaling = runner.cfg.get('auto_scale_lr') or {}
        if scaling.get('enable'):
            _check_batch(loader)
        warn_of_batch(runner, scaling)
        check_units(runner)
        warn_of_cut_off(runner)
        warn_of_checkpoints(runner)
        check_unlabeled(loader.dataset, unwrap_model(runner.model))
        check_index(loader.dataset, unwrap_model(runner.model))
        train = loader.dataset
        val = None if runner.val_loop is None else runner.val_dataloader.dataset
        check_teacher_classes(unwrap_model(runner.model), train, val)
        if val is None:
            return
        check_same_classes(train, val)
        check_disjoint(train, val)
        train = next((part for part in iter_parts(train) if isinstance(part, ImageFolder)), None)
        if train is not None and isinstance(val, ImageFolder) and not train.val_folder:
            names = val.names()
            _check_split(runner, train.names(), names)
            _check_teacher(runner, names)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the classes of a test with those in the checkpoint.

        Raises:
            ConfigError: The classes differ.
        """
        if isinstance(runner._test_loop, BaseLoop):
            stored = _classes_of((checkpoint.get('meta') or {}).get('dataset_meta'))
            present = _classes(runner.test_dataloader.dataset)
            _compare('the checkpoint', stored, 'test_dataloader.dataset', present)


def check_same_classes(train: Any, val: Any) -> None:
    """Check that training and validation set number the same classes in the same way.

    Nothing is compared if one has no ``metainfo['classes']``. Lists of equal length without a
    common name may be different names for the same classes, which is a warning.

    Args:
        train: The training set.
        val: The validation set.

    Raises:
        ConfigError: The classes differ.
    """
    _compare('train_dataloader.dataset', _classes(train), 'val_dataloader.dataset', _classes(val))


def check_teacher_classes(model: nn.Module, train: Any, val: Any = None) -> None:
    """Check that the teachers number the classes as the data and each other.

    A teacher whose checkpoint does not state its classes is not compared. Other names than the
    data's are a warning, as they may be different names for the same classes.

    Args:
        model: The model. Nothing is checked if it has no teacher.
        train: The training set.
        val: The validation set, which counts if the training set does not name its classes.

    Raises:
        ConfigError: A class has another number in the data, and a loss reads the logits.
    """
    sources = {'the training set': _classes(train), 'the validation set': _classes(val)}
    for label, teacher, names in getattr(model, 'teachers', ()):
        who = 'the teacher' if label == 'teacher' else label
        source, classes = next(((s, c) for s, c in sources.items() if c), (None, []))
        if len(teacher.classes) == teacher.num_classes:
            if len(classes) == len(teacher.classes):
                _compare_teacher(who, teacher.classes, source, classes, 'logits' in names)
            sources[who] = list(teacher.classes)


def _compare_teacher(
    who: str, theirs: Sequence[str], source: str, classes: Sequence[str], reads_logits: bool
) -> None:
    """Compare the names of a teacher's classes with as many others."""
    pairs = list(enumerate(zip(theirs, classes, strict=True)))
    others = [number for number, (one, other) in pairs if one != other]
    # ImageNet has classes of the same name.
    counts, present = Counter(theirs), Counter(classes)
    known = (number for number in others if counts[theirs[number]] == present[theirs[number]] == 1)
    moved = next(known, None)
    if moved is not None:
        name = theirs[moved]
        text = (
            f'{who}: its class {moved} is {printable(name)!r}, which is class '
            f'{classes.index(name)} of {source}, so '
        )
        if reads_logits:
            raise ConfigError(
                f'{text}its logits would teach other classes; use a teacher that numbers the '
                'classes in the same order (folders are numbered by their sorted names)'
            )
        print_log(f'{text}its accuracy is too low', 'current', logging.WARNING)
    elif others:
        one, other = pairs[others[0]][1]
        print_log(
            f'{who}: its class {others[0]} is {printable(one)!r}, that of {source} '
            f'{printable(other)!r}; both must number the same classes in the same order',
            'current',
            logging.WARNING,
        )


def check_unlabeled(train: Any, model: nn.Module) -> None:
    """Check that a model can be trained on a data set whose images have no labels.

    Args:
        train: The training set. Nothing is checked if all its images have labels.
        model: The model.

    Raises:
        ConfigError: A loss needs the label of each image, or a head of the student needs some.
    """
    part = next((each for each in iter_parts(train) if isinstance(each, UnlabeledFolder)), None)
    if part is None:
        return
    source = f'train_dataloader.dataset={type(part).__name__}'
    if not isinstance(model, Distiller):
        raise ConfigError(
            f'{source}: must be a labelled data set, as {type(model).__name__} has no teacher to '
            'learn from without labels'
        )
    model.check_needs_no_label(source, some_have_one=train is not part)


def check_index(train: Any, model: nn.Module) -> None:
    """Check that a loss that stores an entry for each training image can tell them apart.

    Args:
        train: The training set. Each part of a ConcatDataset counts its images from 0.
        model: The model.

    Raises:
        ConfigError: The parts of the training set share indices, or the loss has more or fewer
            entries than there are images.
    """
    reads_index = isinstance(model, Distiller) and any('index' in e.needs for e in model.losses)
    if reads_index and len([*iter_parts(train)]) > 1 and not isinstance(train, MixedDataset):
        raise ConfigError(
            f'train_dataloader.dataset={type(train).__name__}: must be one data set, as a loss '
            'stores an entry for each image by its index; put the images in one folder'
        )
    # A RepeatDataset shows the same images several times.
    images = train if isinstance(train, MixedDataset) else next(iter_parts(train))
    if reads_index and isinstance(images, Sized):
        _check_entries(model, len(images))


def _check_entries(model: Distiller, images: int) -> None:
    """Check that the losses store as many entries as there are training images."""
    for number, entry in enumerate(model.losses):
        field = f'model.losses.{number}.loss'
        for loss in entry.losses:
            if isinstance(loss, CRDLoss) and loss.num_samples != images:
                fix = f'{field}.num_samples={images}'
                if loss.negatives >= images:
                    fix += f' {field}.negatives={images - 1}'
                raise ConfigError(
                    f'{field}.num_samples={loss.num_samples}: must be {images}, the number of '
                    f'training images; add --cfg-options {fix}'
                )


def check_disjoint(train: Any, val: Any) -> None:
    """Check that training and validation folders have no image in common, also through links.

    Args:
        train: The training set, whose unlabelled images count, too.
        val: The validation set. Its ``split='train'``, the default, makes it a warning.

    Raises:
        ConfigError: They share images, as with different fractions or seeds of held-out images.
    """
    for part, measured in itertools.product(_folders(train), _folders(val)):
        # Comparing the paths of a million images is slow, a search for links is not.
        if _are_halves(part, measured) and not has_links(measured.img_prefix):
            continue
        shared = real_paths(part) & real_paths(measured)
        if shared:
            _report_shared(part, measured, shared)


def _report_shared(train: FolderDataset, val: FolderDataset, shared: set[str]) -> None:
    is_unlabeled = isinstance(train, UnlabeledFolder)
    text = (
        f'val_dataloader.dataset: {len(shared)} of its {plural(len(val), "image")} are also in the '
        f'{"unlabelled" if is_unlabeled else "training"} set, such as '
        f'{printable(min(shared))!r}, so the accuracy would be too high; '
    )
    if is_unlabeled:
        raise ConfigError(f'{text}leave them out of the unlabelled images')
    if _are_halves(train, val):
        raise ConfigError(f'{text}remove the links to them from one of both')
    if val.split != 'train':
        raise ConfigError(f'{text}give both data sets the same val_fraction and seed')
    print_log(f"{text}set split='val' for other images", 'current', logging.WARNING)


def _folders(dataset: Any) -> Iterator[FolderDataset]:
    return (part for part in iter_parts(dataset) if isinstance(part, FolderDataset))


def _are_halves(one: FolderDataset, other: FolderDataset) -> bool:
    """Return whether two data sets are the two splits of one choice, which share no path."""
    return _choice(one) == _choice(other) and one.split != other.split


def _choice(dataset: FolderDataset) -> tuple:
    """Return what decides which images are in which split."""
    names = ('data_root', 'val_fraction', 'seed')
    return type(dataset), *(getattr(dataset, name, None) for name in names)


def _compare(wanted: str, classes: Sequence, field: str, others: Sequence) -> None:
    """Compare the classes of a data set, named by its field, with those that it must have."""
    if not classes or not others or classes == others:
        return
    if len(classes) == len(others) and not set(classes) & set(others):
        print_log(
            f'the classes of {wanted} and {field} have different names, such as '
            f'{printable(classes[0])!r} and {printable(others[0])!r}; their order must be the same',
            'current',
            logging.WARNING,
        )
        return
    pairs = enumerate(zip_longest(others, classes, fillvalue='missing'))
    index, pair = next((index, pair) for index, pair in pairs if pair[0] != pair[1])
    raise ConfigError(
        f'{field}: must have the classes of {wanted}, but there are {len(others)} and '
        f'{len(classes)}, and class {index} is {printable(pair[0])!r} here and '
        f'{printable(pair[1])!r} there; every class needs a folder in both'
    )


def _classes(dataset: Any) -> list[str]:
    return _classes_of(getattr(dataset, 'metainfo', None))


def _classes_of(meta: Any) -> list[str]:
    classes = meta.get('classes') if isinstance(meta, Mapping) else None
    return list(classes) if isinstance(classes, (list, tuple)) else []


def check_steps(loader: DataLoader) -> None:
    """Check that an epoch has a training step.

    Args:
        loader: The training loader.

    Raises:
        ConfigError: It gives no batch.
    """
    if isinstance(loader.dataset, IterableDataset) or len(loader):
        return
    images = plural(len(loader.dataset), 'image')
    raise ConfigError(
        f'train_dataloader: the run has no training step, as {images} on {get_world_size()} '
        f'process(es) do not fill a batch of {loader.batch_size}, and drop_last leaves out others; '
        'lower batch_size or set drop_last=False'
    )


def _check_batch(loader: DataLoader) -> None:
    images = len(loader.dataset) // get_world_size()
    if loader.batch_size is not None and loader.batch_size > max(images, 1):
        raise ConfigError(
            f'auto_scale_lr.enable: train_dataloader.batch_size={loader.batch_size} is more than '
            f'the {images} training images of a process, for which the learning rate would be too '
            'high; lower batch_size, or disable it'
        )


def warn_of_batch(runner: Runner, scaling: Mapping[str, Any]) -> None:
    """Warn if the learning rate is for batches of another size.

    Args:
        runner: The Runner. The size counts all of its processes and accumulated steps.
        scaling: The config's ``auto_scale_lr``. Without ``base_batch_size`` nothing is known.
    """
    images, expected = runner.train_dataloader.batch_size, scaling.get('base_batch_size')
    if images is None or expected is None:
        return
    ranks, steps = get_world_size(), getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    remedy = 'add --auto-scale-lr, unless you chose the rate for it'
    if scaling.get('enable'):
        # mmengine scales the rate with the processes, but not with the accumulated steps.
        expected, remedy = images * ranks, 'set a rate for it'
    batch = images * ranks * steps
    if batch != expected:
        accumulated = f' x {steps} accumulated steps' if steps > 1 else ''
        runner.logger.warning(
            f'train_dataloader.batch_size={images} x {plural(ranks, "rank")}{accumulated}: the '
            f'learning rate is for {expected} images a step, not {batch}; {remedy}'
        )


def warn_of_checkpoints(runner: Runner) -> None:
    """Warn if checkpoints count epochs in a run that counts iterations, which has no epochs.

    Args:
        runner: The runner.
    """
    if not isinstance(runner.train_loop, IterBasedTrainLoop):
        return
    if any(isinstance(hook, CheckpointHook) and hook.by_epoch for hook in runner.hooks):
        runner.logger.warning(
            'default_hooks.checkpoint.by_epoch=True: no checkpoint but the best is saved before '
            'training ends, as train_cfg counts iterations; set by_epoch=False, and interval in '
            'iterations'
        )


def _check_split(runner: Runner, train: Sequence[str], val: Sequence[str]) -> None:
    """Compare the split with that of the run's earlier parts, and record it."""
    trained = set(train)
    if runner._resume:
        folder = Path(runner._load_from).parent if runner._load_from else Path(runner.work_dir)
        earlier = _read_trained(folder / RECORD)
        moved = sorted(earlier & set(val))
        if moved:
            images = plural(len(moved), 'trained image')
            raise ConfigError(
                f'resume: {images} would now be held out for validation, such as '
                f'{printable(moved[0])!r}; restore val_fraction, seed and the names of the images, '
                'or start a new run in another work directory'
            )
        trained |= earlier
    if is_main_process():
        record = dict(train=sorted(trained), val=sorted(val))
        with atomic_write(Path(runner.work_dir, RECORD)) as file:
            file.write(json.dumps(record, indent=0).encode() + b'\n')


def _check_teacher(runner: Runner, val: Sequence[str]) -> None:
    """Warn if a teacher's own run trained on images that validate in this one."""
    for label, teacher, _ in getattr(unwrap_model(runner.model), 'teachers', ()):
        path = teacher.checkpoint
        seen = _read_trained(Path(path).with_name(RECORD)) & set(val) if path else ()
        if seen:
            who = 'the teacher' if label == 'teacher' else label
            runner.logger.warning(
                f'{who} was trained on {plural(len(seen), "image")} of the validation set, such '
                f'as {printable(min(seen))!r}, so its accuracy is too high; use the seed and '
                'val_fraction of its run'
            )


def _read_trained(path: Path) -> set[str]:
    """Return the images that a record lists as trained; none if there is no valid record."""
    try:
        names = json.loads(read_text(path, MAX_LOG_BYTES))['train'] if path.is_file() else ()
        return set(filter(lambda name: isinstance(name, str), names))
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return set()
