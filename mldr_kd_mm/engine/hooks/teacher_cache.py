"""Hook that caches the teacher's outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from mmpretrain.engine import SwitchRecipeHook
from torch import nn
from torch.utils.data import DataLoader

from mldr_kd_mm.datasets import ViewSampler
from mldr_kd_mm.models.data_preprocessor import ViewDataPreprocessor
from mldr_kd_mm.models.distillers.distiller import Distiller
from mldr_kd_mm.models.distillers.teacher_cache import DTYPES, FORMAT, TeacherCache
from mldr_kd_mm.registry import HOOKS
from mldr_kd_mm.structures.view import View, ViewIndex
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError

_NUM_IMAGES = 16
"""Number of images, evenly spaced, whose hash identifies data set and pipeline."""


@HOOKS.register_module()
class TeacherCacheHook(Hook):
    """Caches the exact outputs of a :class:`Distiller`'s teacher, also under augmentation.

    The train loader needs ``sampler=dict(type='ViewSampler', views=V)``. The first V epochs record
    the outputs; later epochs show the images of epoch ``e mod V`` again and read them. Other runs
    with the same teacher, data and seed, with any student and method, read from the start.

    The cache is opened before training. Everything its outputs depend on is compared with the
    settings they were recorded with; see docs/teacher_cache.md.

    Args:
        dir: Folder of the cache, on a disk that all processes share. None: no cache.
        dtype: ``'fp32'`` stores the exact outputs, ``'fp16'`` takes half the space.

    Raises:
        ConfigError: ``dtype`` is unknown.
    """

    def __init__(self, dir: str | None = None, dtype: str = 'fp32') -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"teacher_cache: dtype={dtype!r}: must be 'fp32' or 'fp16'")
        self.dir = dir
        self.dtype = dtype

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
        fingerprint = dict(
            format=FORMAT,
            torch=str(torch.__version__),
            dtype=self.dtype,
            precision=model.teacher.precision or _precision(runner.optim_wrapper),
            **_data(runner.train_dataloader, items, runner.cfg.get('train_dataloader', {})),
            teacher=_teacher(model),
            normalization=dict(
                student=_normalization(model.data_preprocessor),
                teacher=_normalization(model.teacher.model.data_preprocessor),
            ),
            mixing=_mixing(model.data_preprocessor, runner.train_dataloader),
        )
        model.teacher.cache = TeacherCache(self.dir, fingerprint, _outputs(model, items[0]))

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
    return dict(
        views=sampler.views,
        seed=sampler.seed,
        samples=len(loader.dataset),
        dataset=_without(config.get('dataset', {}), 'data_root'),
        labels=_hash(np.asarray(labels, np.int64)),
        images=_hash(*(np.ascontiguousarray(item['inputs']) for item in items)),
    )


def _teacher(model: Distiller) -> dict:
    state = model.teacher.model.state_dict()
    names = np.frombuffer(' '.join(state).encode(), np.uint8)
    # Hash bytes, since NumPy has no bfloat16.
    values = (
        t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy() for t in state.values()
    )
    return dict(
        weights=_hash(names, *values),
        input_size=model.teacher.size,
        config=_without(model.teacher.config, 'data_preprocessor'),
    )


def _outputs(model: Distiller, item: dict) -> dict[str, dict]:
    """Return the tap and the shape for one image of each output that the losses read."""
    batch = dict(inputs=[item['inputs']], data_samples=[item['data_samples']])
    record = model.run_teacher(model.data_preprocessor(batch, False)['inputs'])
    taps = model.teacher.recorder.taps
    return {
        name: dict(tap=taps.get(name, name) if isinstance(taps, dict) else name, shape=shape)
        for name, shape in ((name, list(value.shape[1:])) for name, value in record.items())
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
    return dict(
        augments=[dict(type=type(a).__name__, **vars(a)) for a in mixer.augments if a is not None],
        probs=mixer.probs,
        batch_size=loader.batch_size,
        drop_last=loader.drop_last,
        processes=sampler.world_size,
        shuffle=sampler.shuffle,
        round_up=sampler.round_up,
    )


def _precision(optim_wrapper: Any) -> str:
    if not isinstance(optim_wrapper, AmpOptimWrapper):
        return 'float32'
    return f'autocast, {getattr(optim_wrapper, "cast_dtype", None) or "default"}'


def _without(config: dict, key: str) -> dict:
    return {name: value for name, value in config.items() if name != key}


def _hash(*arrays: np.ndarray) -> str:
    """Return a checksum of arrays, their shapes and dtypes."""
    state = hashlib.sha256()
    for array in arrays:
        state.update(f'{array.dtype}{array.shape}'.encode())
        state.update(array)
    return state.hexdigest()[:16]
