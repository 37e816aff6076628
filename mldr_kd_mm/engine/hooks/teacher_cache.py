"""Hook that caches the teacher's outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dataset import default_collate, pseudo_collate
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from mmpretrain.engine import SwitchRecipeHook
from mmpretrain.models import ClsDataPreprocessor
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mldr_kd_mm.datasets import MixedSampler, ViewSampler
from mldr_kd_mm.datasets.samples import hash_samples
from mldr_kd_mm.models.data_preprocessor import ViewDataPreprocessor
from mldr_kd_mm.models.distillers.batch import read_labels
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.distillers.encodings import TopKLogits
from mldr_kd_mm.models.distillers.loss_entry import LossEntry
from mldr_kd_mm.models.distillers.teacher import Teacher
from mldr_kd_mm.models.distillers.teacher_cache import (
    DTYPES,
    FORMAT,
    TeacherCache,
    format_bytes,
)
from mldr_kd_mm.models.taps.stages import evaluation_mode
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.structures.view import View, ViewIndex
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, check_above_zero, check_positive
from mldr_kd_mm.utils.logging import plural, tell

_NUM_IMAGES = 16
"""Number of images, evenly spaced, whose content is compared."""
_PLACES = ('data_root', 'data_prefix', 'ann_file')
"""Fields of a data set that say where its samples are."""
_PREPROCESSORS = (
    ViewDataPreprocessor,
    ClsDataPreprocessor,
    ImgDataPreprocessor,
    BaseDataPreprocessor,
)
"""Data preprocessors whose ``forward`` draws no random numbers, apart from ``batch_augments``."""


@HOOKS.register_module()
class TeacherCacheHook(Hook):
    """Caches the exact outputs of a :class:`Distiller`'s teacher, also under augmentation.

    The train loader needs ``sampler=dict(type='ViewSampler', views=V)``. The first V epochs record
    the outputs; later epochs show the images of epoch ``e mod V`` again and read them. Other runs
    with the same teacher, data and seed, with any student and method, read from the start.

    The cache is opened before training. Everything its outputs depend on is compared with the
    settings they were recorded with; see docs/teacher_cache.md.

    Several teachers have a cache each, which is also that of a run with this teacher alone.

    Args:
        dir: Folder of the cache, on a disk that all processes share; the caches of several teachers
            are its subfolders ``teacher1``, ``teacher2``, ..., or it is a list with one folder for
            each. None: no cache.
        dtype: ``'fp32'`` stores the exact outputs, ``'fp16'`` takes half the space.
        top_k: Number of logits to store for each image, the largest; the other classes share their
            probability evenly (:class:`~mldr_kd_mm.models.distillers.encodings.TopKLogits`). For
            1,000 classes and more. None: all logits. Other tensors are stored whole.
        max_change: Largest relative change of a loss, and of its gradient, by ``top_k``. It is
            measured before training on images of the training set.

    Raises:
        ConfigError: ``dtype`` is unknown, or a number is out of range.
    """

    def __init__(
        self,
        dir: str | Sequence[str | None] | None = None,
        dtype: str = 'fp32',
        top_k: int | None = None,
        max_change: float = 0.01,
    ) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"teacher_cache: dtype={dtype!r}: must be 'fp32' or 'fp16'")
        if top_k is not None:
            check_positive(**{'teacher_cache: top_k': top_k})
        check_above_zero(**{'teacher_cache: max_change': max_change})
        self.dir = dir
        self.dtype = dtype
        self.top_k = top_k
        self.max_change = max_change

    def before_train(self, runner: Runner) -> None:
        """Open the cache.

        Raises:
            ConfigError: The run does not support a cache, or the cache has other settings.
        """
        model = unwrap_model(runner.model)
        if self.dir is None or not isinstance(model, Distiller):
            return
        self._check(model, runner.train_dataloader)
        _check_recipes(runner.hooks)
        items = _some_items(runner.train_dataloader)
        shared = dict(
            format=FORMAT,
            torch=str(torch.__version__),
            dtype=self.dtype,
            **_data(runner.train_dataloader, items, runner.cfg.get('train_dataloader', {})),
            mixing=_mixing(model.data_preprocessor, runner.train_dataloader),
        )
        batch = dict(inputs=[items[0]['inputs']], data_samples=[items[0]['data_samples']])
        image = model.data_preprocessor(batch, False)['inputs']
        caches = zip(self.folders(model), model.teachers, strict=True)
        caches = [(folder, *member) for folder, member in caches if folder is not None]
        outputs = {label: _outputs(teacher, image, names) for _, label, teacher, names in caches}
        if self.top_k is not None and caches:
            outputs = self._with_top_k(model, outputs, items)
        for folder, label, teacher, _ in caches:
            fingerprint = shared | dict(
                precision=teacher.precision or _precision(runner.optim_wrapper),
                teacher=_teacher(teacher),
                normalization=dict(
                    student=_normalization(model.data_preprocessor),
                    teacher=_normalization(teacher.model.data_preprocessor),
                ),
            )
            teacher.cache = TeacherCache(folder, fingerprint, outputs[label])

    def folders(self, model: Distiller) -> list[str | None]:
        """Return the folder of each teacher's cache.

        Raises:
            ConfigError: ``dir`` is a list of another length.
        """
        labels = [label for label, _, _ in model.teachers]
        if isinstance(self.dir, (list, tuple)):
            if len(self.dir) != len(labels):
                raise ConfigError(
                    f'teacher_cache: dir={self.dir!r}: must have one folder for each of '
                    f'{plural(len(labels), "teacher")}'
                )
            return list(self.dir)
        return [self.dir if label == 'teacher' else f'{self.dir}/{label}' for label in labels]

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the size and the error of a sparse cache when it is full."""
        for label, teacher, _ in getattr(unwrap_model(runner.model), 'teachers', ()):
            cache = teacher.cache
            if cache is None or self.top_k is None or runner.epoch + 1 != cache.entries[0]:
                continue
            for name, errors in cache.errors.items():
                if errors:
                    size, full = map(format_bytes, cache.sizes(name))
                    runner.logger.info(
                        f'teacher_cache: {label}.{name}: {size} instead of {full}; of '
                        f'{len(errors)} samples, {100 * np.mean(errors):.2g} % of the probability '
                        f'moved to other classes, at most {100 * max(errors):.2g} %'
                    )

    def _with_top_k(
        self, model: Distiller, outputs: dict[str, dict[str, dict]], items: Sequence[dict]
    ) -> dict[str, dict[str, dict]]:
        """Return the outputs of each teacher with the number of logits to store.

        Raises:
            ConfigError: No loss reads logits, there are too few classes, or a loss changes too
                much.
        """
        sparse = {label: own['logits'] for label, own in outputs.items() if 'logits' in own}
        if not sparse:
            raise ConfigError(
                f'teacher_cache: top_k={self.top_k}: must be None, as no loss reads the '
                "teacher's logits"
            )
        fewest = min(logits['shape'][0] for logits in sparse.values())
        if self.top_k >= fewest:
            raise ConfigError(
                f'teacher_cache: top_k={self.top_k}: must be below the number of classes, {fewest}'
            )
        dtype = np.dtype(DTYPES[self.dtype])
        encodings = {
            label: TopKLogits(tuple(logits['shape']), self.top_k, dtype)
            for label, logits in sparse.items()
        }
        changes = loss_changes(model, items, encodings)
        text = ', '.join(f'{name} {100 * change:.2g} %' for name, change in changes.items())
        wrong = [name for name, change in changes.items() if not change <= self.max_change]
        if wrong:
            raise ConfigError(
                f'teacher_cache: top_k={self.top_k}: changes losses by more than '
                f'max_change={self.max_change}: {text}; raise top_k, or set it to None for '
                f'{", ".join(wrong)}'
            )
        tell(f'teacher_cache: top_k={self.top_k}: changes losses of {len(items)} images: {text}')
        stored = {
            label: dict(logits=logits | dict(top_k=self.top_k)) for label, logits in sparse.items()
        }
        return {label: own | stored.get(label, {}) for label, own in outputs.items()}

    def _check(self, model: Distiller, loader: DataLoader) -> None:
        sampler = _sampler(loader)
        if not isinstance(sampler, ViewSampler) or sampler.views is None:
            raise ConfigError(
                f'teacher_cache: train_dataloader.sampler is a {type(sampler).__name__} with '
                f'views={getattr(sampler, "views", None)}: must be '
                "dict(type='ViewSampler', views=V), V the number of epochs to record"
            )
        preprocessor = model.data_preprocessor
        mixes = getattr(preprocessor, 'batch_augments', None) is not None
        if mixes and not isinstance(preprocessor, ViewDataPreprocessor):
            raise ConfigError(
                f'teacher_cache: data_preprocessor.type={type(preprocessor).__name__!r} mixes at '
                "random: must be 'mldr_kd_mm.ViewDataPreprocessor'"
            )
        if type(preprocessor).forward not in [known.forward for known in _PREPROCESSORS]:
            raise ConfigError(
                f'teacher_cache: data_preprocessor.type={type(preprocessor).__name__!r} has a '
                'forward of its own, which may change the images at random: must be '
                "'mldr_kd_mm.ViewDataPreprocessor'; augment in the pipeline instead, or set "
                'dir=None'
            )
        collate = getattr(loader.collate_fn, 'func', loader.collate_fn)  # mmengine's is a partial
        if collate not in (default_collate, pseudo_collate):
            raise ConfigError(
                f'teacher_cache: train_dataloader.collate_fn={_name(collate)} may change the '
                'images at random: must be default_collate or pseudo_collate; augment in the '
                'pipeline instead, or set dir=None'
            )


def loss_changes(
    model: Distiller, items: Sequence[dict], encodings: Mapping[str, TopKLogits]
) -> dict[str, float]:
    """Measure how much sparse logits of the teachers change each loss that reads them.

    The student's tensors are random numbers, so that the result does not change while it learns.

    Args:
        model: The model.
        items: Images of the training set, with their views.
        encodings: Label of each teacher whose logits are sparse, ``teacher`` if there is one, ->
            their form.

    Returns:
        Name of the loss -> the relative change of its value, or of its gradient with respect to the
        student's tensors if that is larger.
    """
    batch = {name: [item[name] for item in items] for name in ('inputs', 'data_samples')}
    data = model.data_preprocessor(batch, False)
    with torch.no_grad(), evaluation_mode(model):
        exact = model.run_teacher(data['inputs'])
        sparse = _run_sparsely(model, data, [*exact], encodings)
        student = model.record_student(data['inputs'])
    random = torch.Generator().manual_seed(0)
    student = {
        name: torch.randn(tensor.shape, generator=random).to(tensor.device)
        for name, tensor in student.items()
    }
    changes = {}
    for entry in model.losses:
        if any(name.rpartition('.')[2] == 'logits' for name in entry.reads('teacher')):
            labels = read_labels(data['data_samples'], entry.needs)
            pairs = zip(
                *(_value_and_gradient(entry, student, each, labels) for each in (exact, sparse)),
                strict=True,
            )
            changes[entry.name] = max(_relative_change(*pair) for pair in pairs)
    return changes


def _run_sparsely(
    model: Distiller,
    data: Mapping[str, Any],
    names: Sequence[str],
    encodings: Mapping[str, TopKLogits],
) -> dict[str, Tensor]:
    """Run the teachers as if their logits were read from sparse caches."""
    sparse = [teacher for label, teacher, _ in model.teachers if label in encodings]
    for teacher, encoding in zip(sparse, encodings.values(), strict=True):
        teacher.cache = partial(_sparse_outputs, encoding)
    try:
        return model.teacher.read(data['inputs'], names, data['data_samples'])
    finally:
        for teacher in sparse:
            teacher.cache = None


def _sparse_outputs(
    encoding: TopKLogits,
    views: Sequence[View],
    device: torch.device,
    run: Callable[[], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """Return a teacher's outputs like a TeacherCache that stores nothing."""
    outputs = run()
    packed = encoding.pack(outputs['logits'].float().cpu().numpy())
    return outputs | dict(logits=torch.from_numpy(encoding.unpack(packed)).to(device))


def _value_and_gradient(
    entry: LossEntry,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    labels: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in student.items()}
    with evaluation_mode(entry):
        value = sum(entry(leaves, teacher, **labels).values())
    gradients = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
    return value.detach(), torch.cat([each.flatten() for each in gradients if each is not None])


def _relative_change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm().clamp_min(1e-12))


def _check_recipes(hooks: Sequence[Hook]) -> None:
    """Refuse a SwitchRecipeHook that changes the images during training."""
    for hook in hooks:
        for recipe in hook.schedule.values() if isinstance(hook, SwitchRecipeHook) else ():
            for field in ('train_pipeline', 'batch_augments'):
                if field in recipe:
                    raise ConfigError(
                        f'teacher_cache: SwitchRecipeHook changes {field}, and with it the images '
                        'whose outputs the cache holds; set dir=None'
                    )


def _name(function: Any) -> str:
    return getattr(function, '__name__', type(function).__name__)


def _sampler(loader: DataLoader) -> Any:
    return getattr(loader.batch_sampler, 'sampler', None)


def _some_items(loader: DataLoader) -> list[dict]:
    """Return evenly spaced items of the data set in their first view."""
    sampler = _sampler(loader)
    size = len(loader.dataset)
    places = np.linspace(0, size - 1, min(_NUM_IMAGES, size)).astype(int).tolist()
    return loader.dataset.__getitems__([ViewIndex(View(sampler.seed, 0, i)) for i in places])


def _data(loader: DataLoader, items: list[dict], config: dict) -> dict:
    """Return everything the images depend on."""
    sampler = _sampler(loader)
    labels = getattr(loader.dataset, 'get_gt_labels', lambda: [])()
    names = hash_samples(loader.dataset)
    # Places do not count where the samples themselves are compared.
    places = _PLACES[:1] if names is None else _PLACES
    return dict(
        views=sampler.views,
        seed=sampler.seed,
        samples=len(loader.dataset),
        sample_names=names,
        dataset=_without(config.get('dataset', {}), *places),
        labels=_hash(np.asarray(labels, np.int64)),
        images=_hash(*(np.ascontiguousarray(item['inputs']) for item in items)),
    )


def _teacher(teacher: Teacher) -> dict:
    state = teacher.model.state_dict()
    names = np.frombuffer(' '.join(state).encode(), np.uint8)
    # Hash bytes, since NumPy has no bfloat16.
    values = (
        t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for t in state.values()
    )
    return dict(
        weights=_hash(names, *values),
        input_size=teacher.size,
        config=_without(teacher.config, 'data_preprocessor'),
    )


def _outputs(teacher: Teacher, image: Tensor, names: Sequence[str]) -> dict[str, dict]:
    """Return the tap and the shape for one image of each output that the losses read."""
    record, taps = teacher(image, names), teacher.recorder.taps
    return {
        name: dict(
            tap=taps.get(name, name) if isinstance(taps, dict) else name,
            shape=list(record[name].shape[1:]),
        )
        for name in names
    }


def _normalization(preprocessor: nn.Module) -> dict:
    statistics = {
        name: getattr(preprocessor, name).flatten().tolist()
        for name in ('mean', 'std')
        if hasattr(preprocessor, name)
    }
    fields = ('to_rgb', 'pad_size_divisor', 'pad_value')
    return statistics | {name: getattr(preprocessor, name, None) for name in fields}


def _mixing(preprocessor: nn.Module, loader: DataLoader) -> dict | None:
    """Return what a mixed image depends on besides its sample; None without mixing."""
    mixer = getattr(preprocessor, 'batch_augments', None)
    if mixer is None:
        return None
    sampler = _sampler(loader)
    is_mixed = isinstance(sampler, MixedSampler)
    return dict(
        augments=[dict(type=type(a).__name__, **vars(a)) for a in mixer.augments if a is not None],
        probs=mixer.probs,
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
        processes=sampler.world_size,
        shuffle=sampler.shuffle,
        round_up=sampler.round_up,
        **(dict(unlabeled_ratio=sampler.unlabeled_ratio) if is_mixed else {}),
    )


def _precision(optim_wrapper: Any) -> str:
    if not isinstance(optim_wrapper, AmpOptimWrapper):
        return 'float32'
    return f'autocast, {getattr(optim_wrapper, "cast_dtype", None) or "default"}'


def _without(value: Any, *fields: str) -> Any:
    """Return a config without these fields, also of the configs in it."""
    if isinstance(value, dict):
        return {k: _without(each, *fields) for k, each in value.items() if k not in fields}
    return [_without(each, *fields) for each in value] if isinstance(value, list) else value


def _hash(*arrays: np.ndarray) -> str:
    """Return a checksum of arrays, their shapes and dtypes."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f'{array.dtype}{array.shape}'.encode())
        state.update(array)
    return state.hexdigest()[:16]
