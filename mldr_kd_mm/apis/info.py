"""Descriptions of a checkpoint, a model or the installation, as pairs of name and value."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldr_kd_mm.apis.models import find_model, recipe_of
from mldr_kd_mm.apis.run_record import RunRecord, mapping, metric_name, plain
from mldr_kd_mm.datasets import ImageFolder
from mldr_kd_mm.evaluation.logged_run import find_checkpoints, owner_of
from mldr_kd_mm.models.backbones.selective_scan import mamba_kernel
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.losses import relation
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.tapped_model import TappedModel
from mldr_kd_mm.utils.checkpoint import find_weights, load_checkpoint
from mldr_kd_mm.utils.errors import ConfigError, named
from mldr_kd_mm.utils.limits import MAX_CONFIG_BYTES, read_text
from mldr_kd_mm.utils.logging import log_warnings_only
from mldr_kd_mm.utils.run_identity import Origin
from mldr_kd_mm.utils.safe_config import parse_config
from mldr_kd_mm.utils.triton import triton_runs
from mldr_kd_mm.version import __version__

Fact = tuple[str, str]

# OneDL's packages and the original ones have different names; one of each is installed.
_PACKAGES = (
    'torch',
    'torchvision',
    'timm',
    'onedl-mmengine',
    'mmengine',
    'onedl-mmcv',
    'mmcv-lite',
    'onedl-mmpretrain',
    'mmpretrain',
    'mamba-ssm',
    'onnx',
    'onnxruntime',
    'rich',
)


def describe(subject: str | None = None) -> Iterator[Fact]:
    """Describe a checkpoint, a model or the installation.

    Args:
        subject: Path of a checkpoint, of a folder that is a work directory, an exported student or
            a folder of images, a model as :func:`mldr_kd_mm.distill` takes it, or None for the
            installation.

    Yields:
        Name and value of a fact.

    Raises:
        ConfigError: The subject is none of these, or cannot be read.
    """
    if subject is None:
        return _installation()
    if Path(subject).is_dir():
        return _folder(Path(subject))
    is_file = Path(subject).is_file() and not subject.endswith('.py')
    if is_file or subject.endswith(('.pth', '.pt', '.safetensors')):
        return _checkpoint(subject)
    return _model(subject)


def _installation() -> Iterator[Fact]:
    yield 'mldr-kd', __version__
    yield 'Python', platform.python_version()
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield 'GPU', ', '.join(gpus) or 'none'
    has_kernel = relation._kernel() is not None
    yield 'C kernel of DFRA', 'built' if has_kernel else 'not built; DFRA is slower on the CPU'
    if gpus:
        runs = triton_runs('cuda')
        yield 'Triton', 'runs' if runs else 'does not run; slower kernels replace it'
        instead = 'Triton replaces it' if runs else 'a slow loop replaces it'
        kernel = 'installed' if mamba_kernel() else f'not installed; {instead}'
        yield "mamba-ssm's kernel", kernel


def _model(name: str) -> Iterator[Fact]:
    found = find_model(name, num_classes=1000)
    size = (3, found.image_size, found.image_size)
    with log_warnings_only():
        tapped = TappedModel(build_classifier(found.config), FeatureRecorder())
        stages = tapped.find_stages(size)
        probe = tapped.probe(['feature', *stages], size)
    parameters = _millions(tapped.model.parameters())
    yield 'model', found.name
    yield 'parameters', f'{parameters} with {probe.width("logits")} classes'
    yield 'images', f'{size[1]} px'
    yield 'pretrained weights', found.weights or 'none'
    yield 'recipe', f'configs/_base_/schedules/{recipe_of(found)}_300e.py'
    yield 'feature', f'{probe.width("feature")} channels'
    for stage in stages:
        yield stage, f'{probe.layouts[stage]} at {tapped.recorder.taps[stage]}'


def _folder(path: Path) -> Iterator[Fact]:
    """Describe the newest checkpoint of a run, an exported student, or a folder of images."""
    for name in ('model.safetensors', 'model.pth'):
        if (path / name).is_file():
            return chain(_checkpoint(str(path / name)), _timm_config(path / 'config.json'))
    # A work directory also has the exported student, which has no training state.
    checkpoints = (file for file in find_checkpoints(path) if Origin.read(file, 'checkpoint'))
    found = next(checkpoints, None)
    return _checkpoint(str(found)) if found else _images(path)


def _timm_config(path: Path) -> Iterator[Fact]:
    if not path.is_file():
        return
    with named(str(path)):
        config = json.loads(read_text(path, MAX_CONFIG_BYTES))
    preprocessing = mapping(config, 'pretrained_cfg')
    yield 'model', plain(mapping(config).get('architecture')) or 'not recorded'
    for name in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode'):
        yield name, plain(preprocessing.get(name)) or 'not recorded'
    names = mapping(config).get('label_names')
    if isinstance(names, list):
        yield from _classes(list(map(str, names)))


def _images(folder: Path) -> Iterator[Fact]:
    train, val = (ImageFolder(data_root=str(folder), split=split) for split in ('train', 'val'))
    yield 'images', f'{len(train)} for training, {len(val)} for validation'
    yield from _classes(train.CLASSES)


def _checkpoint(path: str) -> Iterator[Fact]:
    content = load_checkpoint(path)
    weights = find_weights(content, f'checkpoint={path!r}')
    record = RunRecord.read(content, path)
    notes = f' ({", ".join(weights.notes)})' if weights.notes else ''
    yield 'checkpoint', path
    yield 'weights', f'{len(weights.tensors)} tensors{notes}'
    yield 'values', f"{_millions(weights.tensors.values())}, including norms' statistics"
    if record.classes:
        yield from _classes(record.classes)
    for name in ('experiment', 'epoch', 'iteration', 'seed', 'time', 'mmengine'):
        if value := getattr(record, name):
            yield name, value
    run: dict[str, Any] = {}
    with suppress(ConfigError):
        run = parse_config(record.config or '')
    for name, value in record.teacher_metrics.items():
        owner, metric = owner_of(name)
        yield f"{owner}'s {metric_name(run, metric)}", f'{value:.2f}'
    epoch = record.validated_epoch
    after = '' if epoch is None else f' after epoch {epoch}'
    for name, values in record.metrics.items():
        yield (
            f"student's {metric_name(run, name)}",
            f'{values[-1]:.2f}{after}, best {max(values):.2f}',
        )


def _classes(names: Sequence[str]) -> Iterator[Fact]:
    shown = (name if name.isprintable() and ',' not in name else repr(name) for name in names[:5])
    more = ', ...' if len(names) > 5 else ''
    yield 'classes', f'{len(names)}: {", ".join(shown)}{more}'


def _millions(tensors: Iterable[Tensor]) -> str:
    return f'{sum(tensor.numel() for tensor in tensors) / 1e6:.2f} M'
