"""mmpretrain's classifiers, with two habits of TimmClassifier mended that would lose weights."""

from __future__ import annotations

from mmpretrain.models import BaseClassifier, TimmClassifier
from torch import nn

from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.registry import MODELS


def build_classifier(config: dict) -> nn.Module:
    """Build a classifier that keeps the weights that timm loads.

    Args:
        config: Config of an mmpretrain classifier.

    Returns:
        The classifier. ``init_weights`` leaves it alone if timm has loaded its weights
        (``pretrained=True`` or ``checkpoint_path``), as mmpretrain has it for TIMMBackbone.

    Raises:
        ConfigError: If it is the config of something else.
    """
    classifier = MODELS.build(config)
    if not isinstance(classifier, BaseClassifier):
        raise ConfigError(f'type={config["type"]!r}: must be a classifier of mmpretrain')
    if isinstance(classifier, TimmClassifier):
        classifier._is_init = bool(config.get('pretrained') or config.get('checkpoint_path'))
    return classifier


def nest(classifier: nn.Module) -> None:
    """Make a classifier load as a child of another module.

    A TimmClassifier's own hook renames, and so loses, the keys of its parent; at the top, where it
    lets timm's checkpoints load, it is kept.
    """
    if isinstance(classifier, TimmClassifier):
        classifier._load_state_dict_pre_hooks.clear()
        classifier._register_load_state_dict_pre_hook(_add_timm_prefix_at_top)


def _add_timm_prefix_at_top(state_dict, prefix, *args) -> None:
    if not prefix:
        TimmClassifier._add_state_dict_prefix(state_dict, prefix, *args)
