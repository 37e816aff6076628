"""Classifiers by name: timm's, those of configs/_base_/models, mmpretrain's."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.apis.model import ModelHub, list_models

from mldr_kd_mm.apis.configs import CONFIGS, config_path
from mldr_kd_mm.models.backbones import VisionMamba
from mldr_kd_mm.models.builder import build_classifier, is_cnn
from mldr_kd_mm.utils.errors import ConfigError, named
from mldr_kd_mm.utils.logging import log_warnings_only

MODELS = '_base_/models'
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class NamedModel:
    """A classifier that was asked for.

    Attributes:
        name: What to call it.
        config: Config of an mmpretrain classifier.
        image_size: Height and width of its images, in pixels.
        normalization: ``mean`` and ``std`` of its images, RGB on [0, 255].
        weights: Where its pretrained weights are: ``'timm'``, a URL, or None if there are none.
        pretrained_classes: How many classes these are of.
    """

    name: str
    config: dict[str, Any]
    image_size: int
    normalization: dict[str, list[float]]
    weights: str | None = None
    pretrained_classes: int | None = None


def config_names(folder: str) -> list[str]:
    """Return the names, without ``.py``, of the shipped configs in a folder of them."""
    return sorted(path.stem for path in (CONFIGS / folder).glob('*.py'))


def find_model(
    model: str | dict, num_classes: int, image_size: int | None = None, field: str = 'model'
) -> NamedModel:
    """Find a classifier, and give it so many classes and this image size.

    Args:
        model: ``timm/NAME``, ``mmpretrain/NAME``, or a bare NAME, which is looked for in timm, then
            in ``configs/_base_/models``, then in mmpretrain. Or the path of a config (its ``model``
            or its only dict with a type) or a dict, which are taken as they are.
        num_classes: Of the data.
        image_size: Height and width in pixels. None: what the model was made for.
        field: What the user calls it, for the errors.

    Raises:
        ConfigError: If there is no such model.
    """
    if isinstance(model, dict):
        return NamedModel(_bare(model.get('type')), model, image_size or 224, _normalization())
    if model.endswith('.py'):
        config = _only_model(model, field)
        return NamedModel(Path(model).stem, config, image_size or 224, _normalization())
    import timm  # half a second, and a run of a config names no model

    source, _, name = model.rpartition('/')
    if source in ('timm', '') and timm.is_model(name):
        with named(f'{field}={model!r}'):
            return _of_timm(name, num_classes, image_size)
    if source == '' and name in config_names(MODELS):
        return _of_ours(name, num_classes, image_size, field)
    if source in ('mmpretrain', '') and name in list_models():
        return _of_mmpretrain(name, num_classes, image_size)
    known = [*timm.list_models(), *config_names(MODELS)]
    near = difflib.get_close_matches(name, known)
    hint = f'did you mean {" or ".join(near)}?' if near else 'timm.list_models() lists names'
    raise ConfigError(f'{field}={model!r}: neither timm nor mmpretrain has such a model; {hint}')


def recipe_of(model: NamedModel) -> str:
    """Which of the recipes of ``configs/_base_/schedules`` is for a model: ``cnn`` and so on.

    A network with BatchNorm and without attention gets the CNN recipe, Vision Mamba its own, any
    other the Transformer's.
    """
    with torch.random.fork_rng(devices=[]), log_warnings_only(), named(f'model {model.name!r}'):
        built = build_classifier(copy.deepcopy(model.config))
    if any(isinstance(module, VisionMamba) for module in built.modules()):
        return 'mamba'
    return 'cnn' if is_cnn(built) else 'transformer'


def with_pretrained_weights(model: NamedModel, field: str) -> dict[str, Any]:
    """The config of a model that begins with its pretrained weights.

    Args:
        model: The model.
        field: What the user calls it, for the errors.

    Raises:
        ConfigError: If there are no such weights.
    """
    _check_has_weights(model, field)
    if model.weights == 'timm':
        return {**model.config, 'pretrained': True}
    return {**model.config, 'init_cfg': dict(type='Pretrained', checkpoint=model.weights)}


def fetch_pretrained(model: NamedModel, path: Path, field: str) -> str:
    """Have a model's pretrained weights where ``load_from`` finds them.

    Args:
        model: The model.
        path: Where timm's are written, with a new head.
        field: What the user calls the model, for the errors.

    Returns:
        The path, or mmpretrain's URL.

    Raises:
        ConfigError: If there are no such weights, or they cannot be fetched.
    """
    import timm

    _check_has_weights(model, field)
    if model.weights != 'timm':
        return model.weights
    not_timms = ('type', 'model_name', 'loss', 'train_cfg')
    arguments = {k: v for k, v in model.config.items() if k not in not_timms}
    try:
        with torch.random.fork_rng(devices=[]):
            created = timm.create_model(model.config['model_name'], pretrained=True, **arguments)
    except Exception as error:  # of the hub, or of whatever it is reached through
        reason = str(error).strip().splitlines()[0].rstrip('.')
        raise ConfigError(
            f'{field}={model.name!r}: its pretrained weights cannot be fetched ({reason}): '
            f'{_without(field)}'
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(created.state_dict(), path)
    return str(path)


def _check_has_weights(model: NamedModel, field: str) -> None:
    if model.weights is None:
        raise ConfigError(
            f'{field}={model.name!r}: there are no pretrained weights of it: {_without(field)}'
        )


def _without(field: str) -> str:
    """What to do where there are no pretrained weights."""
    checkpoint = 'give teacher_checkpoint, or ' if field == 'teacher' else ''
    return f'{checkpoint}set {field}_pretrained=False to begin with random ones'


def _of_timm(name: str, num_classes: int, image_size: int | None) -> NamedModel:
    import timm

    known = timm.get_pretrained_cfg(name, allow_unregistered=False)
    own_size = known.input_size[-1]
    config = dict(type='TimmClassifier', model_name=name, num_classes=num_classes)
    if known.fixed_input_size and image_size not in (None, own_size):
        config['img_size'] = image_size
    normalization = _normalization(known.mean, known.std)
    weights = 'timm' if known.has_weights else None
    return NamedModel(
        name, config, image_size or own_size, normalization, weights, known.num_classes
    )


def _of_ours(name: str, num_classes: int, image_size: int | None, field: str) -> NamedModel:
    config = _only_model(config_path(f'{MODELS}/{name}.py'), field)
    if config['type'] == 'TimmClassifier':
        found = _of_timm(config['model_name'], num_classes, image_size)
        return replace(found, name=name, config={**config, **found.config})
    _set_classes(config, num_classes)
    return NamedModel(name, config, _set_size(config, image_size), _normalization())


def _of_mmpretrain(name: str, num_classes: int, image_size: int | None) -> NamedModel:
    info = ModelHub.get(name)
    config = info.config.model.to_dict()
    pretrained_classes = config.get('head', {}).get('num_classes')
    _set_classes(config, num_classes)
    statistics = info.config.get('data_preprocessor', {})
    normalization = {
        key: list(statistics[key]) if key in statistics else values
        for key, values in _normalization().items()
    }
    size = _set_size(config, image_size)
    return NamedModel(name, config, size, normalization, info.weights, pretrained_classes)


def _only_model(path: str, field: str) -> dict[str, Any]:
    """The model that a config file describes."""
    if not Path(path).is_file():
        raise ConfigError(f'{field}={path!r}: there is no such file')
    with named(f'{field}={path!r}'):
        config = Config.fromfile(path).to_dict()
    if 'model' in config:
        return config['model']
    models = [v for v in config.values() if isinstance(v, dict) and 'type' in v]
    if len(models) != 1:
        raise ConfigError(f'{field}={path!r}: must have a model, or one dict with a type')
    return models[0]


def _set_classes(config: dict, num_classes: int) -> None:
    holder = config.get('head', config)
    holder['num_classes'] = num_classes
    if num_classes < 5 and 'topk' in holder:
        holder['topk'] = (1,)


def _set_size(config: dict, image_size: int | None) -> int:
    """Give a model of fixed image size another; returns what it has then."""
    backbone = config.get('backbone', config)
    if 'img_size' in backbone and image_size:
        backbone['img_size'] = image_size
    return image_size or backbone.get('img_size', 224)


def _normalization(
    mean: Sequence[float] = IMAGENET['mean'], std: Sequence[float] = IMAGENET['std']
) -> dict[str, list[float]]:
    return dict(mean=[round(255 * x, 3) for x in mean], std=[round(255 * x, 3) for x in std])


def _bare(kind: Any) -> str:
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]
