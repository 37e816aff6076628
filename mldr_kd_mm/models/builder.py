"""Build a classifier and fill it with the weights of a checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

from mmpretrain.models import BaseClassifier, TimmClassifier
from torch import Tensor, nn

from mldr_kd_mm.models.taps import stages
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.checkpoint import read_weights
from mldr_kd_mm.utils.errors import ConfigError, printable


class LoadReport(NamedTuple):
    """Which of a model's weights a checkpoint filled, and what had to be done for it."""

    matched: int
    missing: list[str]
    unexpected: list[str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = (
            f'{self.matched} weights matched, {len(self.missing)} missing, '
            f'{len(self.unexpected)} unexpected'
        )
        return ', '.join((counts, *self.notes))


def load_weights(model: nn.Module, path: str, field: str) -> LoadReport:
    """Fill all weights of a model from a checkpoint.

    Weights that do not fit a TimmClassifier as they are go through the conversion that timm has for
    its model: older names, and position embeddings of another image size.

    Args:
        model: The model to fill.
        path: Path, URL or ``hf-hub:`` name of the checkpoint.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        What was filled; nothing is missing.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If a weight of the model is missing or has another shape.
    """
    weights, notes = read_weights(path, field)
    report, mistake = fill(model, weights)
    converted = _convert(model, weights) if mistake else {}
    if converted:
        weights, notes = converted, (*notes, 'converted by timm')
        report, mistake = fill(model, weights)
    if mistake:
        raise ConfigError(f'{field}={path!r}: {_of_other_classes(model, weights) or mistake}')
    return report._replace(notes=notes)


def fill(model: nn.Module, weights: dict[str, Tensor]) -> tuple[LoadReport, str]:
    """Load the weights that fit a model.

    Args:
        model: The model to fill.
        weights: Name -> tensor.

    Returns:
        What was filled, and what is wrong, empty if nothing is missing.
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except Exception as error:
        # Of torch's own, the first line names the model alone. The hooks of mmpretrain's models,
        # which resize and rename, raise whatever they meet.
        lines = [line.strip() for line in str(error).splitlines()]
        return LoadReport(0, [], []), _first(lines[1:] or lines) or type(error).__name__
    report = LoadReport(len(weights) - len(unexpected), missing, unexpected)
    if missing:
        return report, (
            f'{report}: all weights must be there; missing {_first(missing)}; '
            f'unexpected {_first(unexpected) or "none"}'
        )
    return report, ''


def _convert(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let timm bring weights to how its model of today has them; nothing if it cannot."""
    if not isinstance(model, TimmClassifier):
        return {}
    module = importlib.import_module(type(model.model).__module__)
    convert = getattr(module, 'checkpoint_filter_fn', None)
    try:
        return convert(dict(weights), model.model) if convert else {}
    except Exception:
        # Written for weights of the model's own family, it fails anyhow on those of another, whose
        # misfit as they are is the error to report.
        return {}


def _of_other_classes(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """What is wrong if the weights' last layer is the model's but for the number of classes."""
    try:
        path = stages.feature_tap(model).removesuffix(stages.INPUT)
    except ConfigError:
        return ''
    own = getattr(model.get_submodule(path), 'weight', None)
    # A TimmClassifier's file has timm's names.
    prefix = 'model.' if isinstance(model, TimmClassifier) else ''
    theirs = weights.get(f'{path.removeprefix(prefix)}.weight')
    if own is None or theirs is None or own.shape[1:] != theirs.shape[1:]:
        return ''
    if len(own) == len(theirs):
        return ''
    return (
        f'its head has {len(theirs)} classes, the model {len(own)}: fine-tune it on the '
        f'{len(own)} classes, or set num_classes={len(theirs)} if the data has as many'
    )


def _first(items: Sequence[str], count: int = 4) -> str:
    rest = f' and {len(items) - count} more' if len(items) > count else ''
    return ', '.join(map(printable, items[:count])) + rest


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
