"""What a checkpoint, a model or this installation is, in lines of name and value."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer

from mldr_kd_mm.apis.models import find_model, recipe_of
from mldr_kd_mm.models.backbones.selective_scan import mamba_kernel
from mldr_kd_mm.models.builder import build_classifier
from mldr_kd_mm.models.losses import relation
from mldr_kd_mm.models.taps.recorder import FeatureRecorder
from mldr_kd_mm.models.taps.stages import stage_layout
from mldr_kd_mm.utils.checkpoint import load_checkpoint, read_weights
from mldr_kd_mm.utils.errors import printable
from mldr_kd_mm.utils.logging import log_warnings_only
from mldr_kd_mm.version import __version__

Fact = tuple[str, str]

# Whose versions matter; of two names one is installed.
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
    """Say what something is.

    Args:
        subject: Path of a checkpoint, or a model as :func:`mldr_kd_mm.distill` takes it. None: this
            installation.

    Yields:
        A name and a value.

    Raises:
        ConfigError: If it is none of these, or cannot be read.
    """
    if subject is None:
        return _installation()
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
    yield 'C kernel of DFRA', 'built' if has_kernel else 'not built: DFRA is slower on the CPU'
    if gpus:
        yield 'GPU kernel of Vision Mamba', 'there' if mamba_kernel() else 'not there: a slow loop'


@torch.no_grad()
def _model(name: str) -> Iterator[Fact]:
    found = find_model(name, num_classes=1000)
    size = (3, found.image_size, found.image_size)
    with log_warnings_only():
        model = build_classifier(found.config).eval()
        recorder = FeatureRecorder()
        recorder.find_stages(model, size)
        names = ['feature', *recorder.taps]
        with recorder(model, names) as record:
            logits = model(torch.zeros(1, *size), mode='tensor')
    yield 'model', found.name
    yield 'parameters', f'{_millions(model.parameters())} with {logits.shape[1]} classes'
    yield 'images', f'{size[1]} px'
    yield 'pretrained weights', found.weights or 'none known'
    yield 'recipe', f'configs/_base_/schedules/{recipe_of(found)}_300e.py'
    yield 'feature', f'{record["feature"].flatten(1).shape[1]} wide'
    for stage, path in recorder.taps.items():
        yield stage, f'{stage_layout(model, stage, record[stage], size[1:])} at {path}'


def _checkpoint(path: str) -> Iterator[Fact]:
    content = load_checkpoint(path)
    weights = read_weights(path)
    meta, hub = (_mapping(content, name) for name in ('meta', 'message_hub'))
    yield 'checkpoint', path
    notes = f' ({", ".join(weights.notes)})' if weights.notes else ''
    yield 'weights', f'{len(weights.tensors)} tensors{notes}'
    yield 'values', f'{_millions(weights.tensors.values())}, statistics of norms among them'
    classes = _mapping(meta, 'dataset_meta').get('classes')
    if isinstance(classes, (list, tuple)):
        more = ', ...' if len(classes) > 5 else ''
        yield 'classes', f'{len(classes)}: {printable(", ".join(map(str, classes[:5])))}{more}'
    for name in ('experiment_name', 'epoch', 'iter', 'seed', 'time', 'mmengine_version'):
        if meta.get(name) is not None:
            yield name, printable(meta[name])
    info = _mapping(hub, 'runtime_info')
    for name, value in _mapping(info, 'teacher_metrics').items():
        yield f"teacher's {printable(name)}", f'{value:.2f}'
    for name, history in _mapping(hub, 'log_scalars').items():
        is_metric = str(name).startswith('val/') and not str(name).endswith('time')
        if is_metric and isinstance(history, HistoryBuffer) and len(history.data[0]):
            values, epoch = history.data[0], info.get('last_validated_epoch')
            after = '' if epoch is None else f' after epoch {epoch}'
            yield printable(name), f'{values[-1]:.2f}{after}, best {max(values):.2f}'


def _mapping(content: Any, name: str) -> dict[str, Any]:
    """What of a file's content stands under a name, if it is a dict."""
    value = content.get(name) if isinstance(content, dict) else None
    return value if isinstance(value, dict) else {}


def _millions(tensors: Any) -> str:
    return f'{sum(tensor.numel() for tensor in tensors) / 1e6:.2f} M'
