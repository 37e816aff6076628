"""Build classifiers, necks and losses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmpretrain.models import BaseClassifier, TimmClassifier
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mldr_kd_mm.models.necks.outputs import named_outputs
from mldr_kd_mm.models.taps.stages import WRAPPERS, evaluation_mode
from mldr_kd_mm.models.taps.tapped_model import Probe
from mldr_kd_mm.models.weights import load_weights
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.download import quiet_hub
from mldr_kd_mm.utils.errors import ConfigError, named


def build_classifier(config: dict) -> nn.Module:
    """Build a classifier that keeps the weights that timm or transformers loads.

    Args:
        config: Config of an mmpretrain classifier.

    Returns:
        The classifier. If its library loads its weights (``pretrained=True``) or
        ``checkpoint_path`` names a file with all of them, ``init_weights`` keeps them, as in
        mmpretrain's TIMMBackbone.

    Raises:
        ConfigError: If the config does not describe a classifier, or a weight is missing from the
            file.
    """
    checkpoint = config.get('checkpoint_path')
    with quiet_hub():
        classifier = MODELS.build({k: v for k, v in config.items() if k != 'checkpoint_path'})
    if not isinstance(classifier, BaseClassifier):
        raise ConfigError(f'type={config["type"]!r}: must be an mmpretrain classifier')
    if checkpoint:
        label = f'checkpoint_path={checkpoint!r}'
        load_weights(classifier, checkpoint, 'checkpoint_path').log(label)
    keep_loaded_weights(classifier, config)
    return classifier


def keep_loaded_weights(classifier: nn.Module, config: Mapping[str, Any]) -> None:
    """Let ``init_weights`` keep the weights that timm or transformers has loaded.

    Args:
        classifier: The classifier; only :data:`~mldr_kd_mm.models.taps.stages.WRAPPERS` change.
        config: Its config.
    """
    if isinstance(classifier, WRAPPERS):
        classifier._is_init = bool(config.get('pretrained') or config.get('checkpoint_path'))


def is_cnn(model: nn.Module) -> bool:
    """Return whether a network has BatchNorm and no attention."""
    modules = list(model.modules())
    has_attention = any('Attention' in type(module).__name__ for module in modules)
    return any(isinstance(module, _BatchNorm) for module in modules) and not has_attention


def nest(classifier: nn.Module) -> None:
    """Make a classifier load its weights as a child of another module.

    The own hook of a TimmClassifier or a HuggingFaceClassifier would rename the keys of its parent,
    which would then be lost. The hook still runs when weights are loaded into the classifier
    itself, so that it accepts the checkpoints of timm or transformers.
    """
    if isinstance(classifier, WRAPPERS):
        classifier._load_state_dict_pre_hooks.clear()
        classifier._register_load_state_dict_pre_hook(_add_prefix_at_top)


def _add_prefix_at_top(state_dict, prefix, *args) -> None:
    if not prefix:
        TimmClassifier._add_state_dict_prefix(state_dict, prefix, *args)


def build_for(config: dict, found: Mapping[str, Any]) -> nn.Module:
    """Build a loss or a neck for the tensors of a model.

    Args:
        config: Config of the module.
        found: Argument -> value found from the model. It is used if the class takes the argument
            and the config omits it or sets it to None.

    Returns:
        The module.
    """
    cls = config['type']
    cls = MODELS.get(cls) if isinstance(cls, str) else cls
    parameters = inspect.signature(cls).parameters if cls is not None else {}
    given = {key: value for key, value in config.items() if value is not None or key not in found}
    return MODELS.build({key: found[key] for key in found if key in parameters} | given)


@torch.no_grad()
def build_neck(
    config: dict, stages: Sequence[str], student: Probe, teacher: Probe
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a neck for the stages of a student, and run it once.

    Args:
        config: Config of the neck.
        stages: Names of the stages or other taps that it reads.
        student: Tensors of the student.
        teacher: Tensors of the teacher. If ``feature`` is among them and the student's last stage
            is a map, the neck is at least as wide as ``feature`` (MLDR-KD's rule for maps), of
            several teachers as the widest.

    Returns:
        The neck and its outputs.

    Raises:
        ConfigError: If the neck cannot be built or does not take the stages.
    """
    layouts = [student.layouts[stage] for stage in stages]
    found = dict(
        in_channels=[layout.channels for layout in layouts],
        grids=[None if layout.is_map else layout.grid for layout in layouts],
        num_classes=student.width('logits'),
    )
    features = [name for name in teacher.tensors if name.rpartition('.')[2] == 'feature']
    if layouts[-1].is_map and features:
        found['project_dim'] = max(layouts[-1].channels, *map(teacher.width, features))
    with named('neck'):
        neck = build_for(config, found)
        with evaluation_mode(neck):
            return neck, named_outputs(neck([student.tensors[stage] for stage in stages]))
