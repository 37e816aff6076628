"""Find classifiers by name in timm, mmpretrain, torchvision, transformers and the configs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.apis.model import ModelHub, list_models
from torch import nn

from mldr_kd_mm.apis.configs import find_configs
from mldr_kd_mm.models.backbones import VisionMamba, hugging_face
from mldr_kd_mm.models.backbones.modules import describe_module
from mldr_kd_mm.models.builder import build_classifier, is_cnn
from mldr_kd_mm.models.data_preprocessor import (
    Statistics,
    own_statistics,
    read_pretrained_cfg,
    statistics_of_run,
)
from mldr_kd_mm.utils.download import quiet_hub
from mldr_kd_mm.utils.errors import ConfigError, did_you_mean, named
from mldr_kd_mm.utils.logging import log_warnings_only, tell

MODELS = '_base_/models'
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class NamedModel:
    """A classifier, its input and its pretrained weights.

    Attributes:
        name: Name for messages and work directories.
        config: Config of an mmpretrain classifier.
        image_size: Height and width of its images, in pixels.
        normalization: ``mean`` and ``std`` of its images, on [0, 255], and ``to_rgb=False`` if it
            was made for BGR images.
        weights: Source of its pretrained weights: ``'timm'``, ``'hf'``, a URL, or None if there are
            none.
        pretrained_classes: Number of classes of the pretrained weights.
    """

    name: str
    config: dict[str, Any]
    image_size: int
    normalization: dict[str, Any]
    weights: str | None = None
    pretrained_classes: int | None = None

    @property
    def shared_normalization(self) -> dict[str, Any]:
        """``mean`` and ``std`` of RGB images for a run of this model: ImageNet's if it reads BGR.

        A model that reads BGR needs a data preprocessor of its own.
        """
        return _normalization() if self.reads_bgr else self.normalization

    @property
    def reads_bgr(self) -> bool:
        """Whether the model was made for BGR images."""
        return 'to_rgb' in self.normalization


def find_model(
    model: str | dict | nn.Module,
    num_classes: int,
    image_size: int | None = None,
    field: str = 'model',
) -> NamedModel:
    """Find a classifier and set its number of classes and its image size.

    Args:
        model: ``timm/NAME``, ``mmpretrain/NAME``, or a bare NAME, which is looked up in timm, then
            in ``configs/_base_/models``, then in mmpretrain. Also ``torchvision/NAME``;
            ``hf/NAME``, where NAME is a repository of the Hugging Face hub or a folder; the path of
            a config (its ``model`` or its only dict with a type), a dict, or a module that maps
            images to logits. The last three are used unchanged.
        num_classes: Number of classes of the data.
        image_size: Height and width in pixels. None: the size that the model was made for.
        field: Name of the argument, for errors.

    Raises:
        ConfigError: If there is no such model.
    """
    if isinstance(model, nn.Module):
        config = describe_module(model)
        known = getattr(model, 'pretrained_cfg', None)
        found = read_pretrained_cfg(known, 'timm') if isinstance(known, dict) else None
        return NamedModel(config['model_name'], config, image_size or 224, _fields_of(found))
    if isinstance(model, dict):
        normalization = _fields_of(own_statistics(model))
        return NamedModel(_bare(model.get('type')), model, image_size or 224, normalization)
    if not isinstance(model, str):
        raise ConfigError(
            f'{field}={model!r}: must be a name, the path of a config, a dict or a module; several '
            'teachers need a config'
        )
    if model.endswith('.py'):
        config = _only_model(model, field)
        normalization = _fields_of(own_statistics(config))
        return NamedModel(Path(model).stem, config, image_size or 224, normalization)
    if model.startswith('hf/'):
        return _of_hugging_face(model.removeprefix('hf/'), num_classes, image_size, field)
    if model.startswith('torchvision/'):
        name = model.removeprefix('torchvision/')
        return _of_torchvision(name, num_classes, image_size, field)
    import timm  # takes half a second, and a run from a config does not get here

    source, _, name = model.rpartition('/')
    if source in ('timm', '') and timm.is_model(name):
        with named(f'{field}={model!r}'):
            return _of_timm(name, num_classes, image_size)
    ours = find_configs(MODELS)
    if source == '' and name in ours:
        return _of_ours(ours[name], num_classes, image_size, field)
    if source in ('mmpretrain', '') and name in list_models():
        return _of_mmpretrain(name, num_classes, image_size)
    hint = did_you_mean(name, [*timm.list_models(), *ours]) or 'timm.list_models() lists names'
    raise ConfigError(f'{field}={model!r}: neither timm nor mmpretrain has such a model; {hint}')


def _of_torchvision(name: str, num_classes: int, image_size: int | None, field: str) -> NamedModel:
    import torchvision

    names = torchvision.models.list_models(torchvision.models)
    # MNASNet only loads files with a version, which the checkpoints of a run do not have.
    known = [each for each in names if not each.startswith('mnasnet')]
    if name not in known:
        hint = did_you_mean(name, known) or 'list_models(torchvision.models) lists names'
        raise ConfigError(f"{field}='torchvision/{name}': there is no such model; {hint}")
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    size = image_size or transforms.crop_size[0]
    kwargs = dict(num_classes=num_classes)
    if name.startswith('vit_'):
        kwargs['image_size'] = size
    elif name.startswith('maxvit'):
        kwargs['input_size'] = (size, size)
    elif name in ('googlenet', 'inception_v3'):
        # Their auxiliary classifiers have a loss of their own, and their weights are for images on
        # [-1, 1], to which they convert ImageNet's normalisation.
        kwargs |= dict(aux_logits=False, init_weights=True, transform_input=True)
    config = dict(type='ModuleClassifier', module=f'torchvision.models:{name}', kwargs=kwargs)
    normalization = _normalization(transforms.mean, transforms.std)
    return NamedModel(name, config, size, normalization, weights.url, 1000)


def _of_hugging_face(name: str, num_classes: int, image_size: int | None, field: str) -> NamedModel:
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise ConfigError(
            f"{field}='hf/{name}': needs transformers; run pip install 'transformers>=5,<6'"
        ) from error
    with named(f"{field}='hf/{name}'"):
        known = AutoConfig.from_pretrained(name)
    known_statistics = hugging_face.read_statistics(name)
    mean, std, is_bgr = known_statistics or (IMAGENET['mean'], IMAGENET['std'], False)
    config = dict(
        type='ModuleClassifier',
        module='mldr_kd_mm.models.backbones.hugging_face:create',
        kwargs=dict(name=name, num_classes=num_classes),
    )
    size = image_size or _side(getattr(known, 'image_size', None)) or 224
    normalization = _normalization(mean, std, is_bgr)
    label = Path(name).name
    return NamedModel(label, config, size, normalization, 'hf', known.num_labels)


def _side(size: Any) -> int | None:
    """Return the height of an image size that transformers gives as a number or a pair."""
    return size[0] if isinstance(size, (list, tuple)) else size


def recipe_of(model: NamedModel) -> str:
    """Return the recipe of ``configs/_base_/schedules`` for a model.

    Returns:
        ``'cnn'`` for a network with BatchNorm and without attention, ``'mamba'`` for Vision Mamba,
        ``'transformer'`` for any other.
    """
    with torch.random.fork_rng(devices=[]), log_warnings_only(), named(f'model {model.name!r}'):
        built = build_classifier(copy.deepcopy(model.config))
    if any(isinstance(module, VisionMamba) for module in built.modules()):
        return 'mamba'
    return 'cnn' if is_cnn(built) else 'transformer'


def with_pretrained_weights(model: NamedModel, field: str) -> dict[str, Any]:
    """Return the config of a model that starts from its pretrained weights.

    Args:
        model: The model.
        field: Name of the argument, for errors.

    Raises:
        ConfigError: If there are no such weights.
    """
    _check_has_weights(model, field)
    if model.weights == 'timm':
        return {**model.config, 'pretrained': True}
    if model.weights == 'hf':
        return {**model.config, 'kwargs': {**model.config['kwargs'], 'pretrained': True}}
    return {**model.config, 'init_cfg': dict(type='Pretrained', checkpoint=model.weights)}


def fetch_pretrained(model: NamedModel, path: Path, field: str) -> str:
    """Return a path or URL of a model's pretrained weights for ``load_from``.

    Args:
        model: The model.
        path: File to write the weights of timm or transformers to, with a new head.
        field: Name of the argument, for errors.

    Returns:
        The path, or mmpretrain's URL.

    Raises:
        ConfigError: If there are no such weights, or they cannot be downloaded.
    """
    _check_has_weights(model, field)
    if model.weights not in ('timm', 'hf'):
        return model.weights
    tell(f'{field}: loading the pretrained weights of {model.name}')
    try:
        with torch.random.fork_rng(devices=[]), quiet_hub():
            created = _create_pretrained(model)
    except Exception as error:  # from the hub, or from the network stack below it
        reason = str(error).strip().splitlines()[0].partition('. ')[0].rstrip('.')
        raise ConfigError(
            f'{field}={model.name!r}: its pretrained weights cannot be downloaded ({reason}); '
            f'{_without(field)}'
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(created.state_dict(), path)
    return str(path)


def _create_pretrained(model: NamedModel) -> nn.Module:
    """Return the module of timm or transformers, with its pretrained weights and a new head."""
    if model.weights == 'hf':
        return hugging_face.create(**model.config['kwargs'], pretrained=True)
    import timm

    not_timms = ('type', 'model_name', 'loss', 'train_cfg')
    arguments = {k: v for k, v in model.config.items() if k not in not_timms}
    return timm.create_model(model.config['model_name'], pretrained=True, **arguments)


def _check_has_weights(model: NamedModel, field: str) -> None:
    if model.weights is None:
        raise ConfigError(
            f'{field}={model.name!r}: it has no pretrained weights; {_without(field)}'
        )


def _without(field: str) -> str:
    """Return the advice for a model without pretrained weights."""
    checkpoint = 'give teacher_checkpoint, or ' if field == 'teacher' else ''
    return f'{checkpoint}use {field}_pretrained=False to start from random weights'


def _of_timm(name: str, num_classes: int, image_size: int | None) -> NamedModel:
    import timm

    known = timm.get_pretrained_cfg(name, allow_unregistered=False)
    own_size = known.input_size[-1]
    config = dict(type='TimmClassifier', model_name=name, num_classes=num_classes)
    # The attention pool of CLIP's ResNets interpolates its position embedding by itself; built for
    # another size, it would not load the weights.
    is_fixed = known.fixed_input_size and not timm.models.is_model_in_modules(name, ['byobnet'])
    if is_fixed and image_size not in (None, own_size):
        config['img_size'] = image_size
    normalization = _normalization(known.mean, known.std)
    weights = 'timm' if known.has_weights else None
    return NamedModel(
        name, config, image_size or own_size, normalization, weights, known.num_classes
    )


def _of_ours(path: Path, num_classes: int, image_size: int | None, field: str) -> NamedModel:
    name, config = path.stem, _only_model(str(path), field)
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
    normalization = _fields_of(statistics_of_run(info.config.to_dict(), name))
    size = _set_size(config, image_size)
    return NamedModel(name, config, size, normalization, info.weights, pretrained_classes)


def _only_model(path: str, field: str) -> dict[str, Any]:
    """Return the model in a config file."""
    if not Path(path).is_file():
        raise ConfigError(f'{field}={path!r}: there is no such file')
    with named(f'{field}={path!r}'):
        config = Config.fromfile(path).to_dict()
    if 'model' in config:
        return config['model']
    models = [v for v in config.values() if isinstance(v, dict) and 'type' in v]
    if len(models) != 1:
        raise ConfigError(f'{field}={path!r}: must contain a model, or one dict with a type')
    return models[0]


def _set_classes(config: dict, num_classes: int) -> None:
    holder = config.get('head', config)
    holder['num_classes'] = num_classes
    if num_classes < 5 and 'topk' in holder:
        holder['topk'] = (1,)


def _set_size(config: dict, image_size: int | None) -> int:
    """Set the image size of a model that has a fixed one; return the resulting size."""
    backbone = config.get('backbone', config)
    if 'img_size' in backbone and image_size:
        backbone['img_size'] = image_size
    return image_size or backbone.get('img_size', 224)


def _normalization(
    mean: Sequence[float] = IMAGENET['mean'],
    std: Sequence[float] = IMAGENET['std'],
    is_bgr: bool = False,
) -> dict[str, Any]:
    scaled = ([round(255 * x, 3) for x in values] for values in (mean, std))
    return _fields_of(Statistics(*scaled, source='', is_bgr=is_bgr))


def _fields_of(found: Statistics | None) -> dict[str, Any]:
    """Return the statistics of a model's weights, or ImageNet's if they are unknown."""
    return _normalization() if found is None else found.to_fields(dict(to_rgb=True))


def _bare(kind: Any) -> str:
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]
