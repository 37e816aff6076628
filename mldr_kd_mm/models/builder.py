"""Build classifiers, necks and losses, and load the weights of a checkpoint."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmpretrain.models import BaseClassifier, TimmClassifier
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mldr_kd_mm.models.necks.outputs import named_outputs
from mldr_kd_mm.models.taps.stages import INPUT, evaluation_mode, feature_tap
from mldr_kd_mm.models.taps.tapped_model import Probe
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.utils.checkpoint import read_weights
from mldr_kd_mm.utils.errors import ConfigError, named, printable

_MAX_PREFIX = 8  # parts of a prefix of all names


class LoadReport(NamedTuple):
    """Summary of loading a checkpoint: names of its weights and conversions that were applied."""

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
    """Load all weights of a model from a checkpoint.

    A prefix that the weights of the model share in the file, such as Lightning's ``model.``, is
    removed. Weights that do not fit a TimmClassifier go through timm's own conversion for that
    model, which handles older names and position embeddings for another image size.

    Args:
        model: The model to load into.
        path: Path, URL or ``hf-hub:`` name of the checkpoint.
        field: Name of the config's field that holds the path, for the errors.

    Returns:
        The report. No weight is missing.

    Raises:
        MissingFileError: If the file does not exist.
        ConfigError: If a weight of the model is missing or has another shape, or the file holds the
            model under several prefixes.
    """
    everything, notes = read_weights(path, field)
    prefix = _shared_prefix(model, everything, f'{field}={path!r}')
    weights = {k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)}
    others = [name for name in everything if not name.startswith(prefix)]
    if prefix:
        notes = (*notes, f'under the prefix {printable(repr(prefix))}')
    report, mistake = fill(model, weights, prefix)
    converted = _convert(model, weights) if mistake else {}
    if converted:
        weights, notes = converted, (*notes, 'converted by timm')
        report, mistake = fill(model, weights, prefix)
    if mistake:
        raise ConfigError(f'{field}={path!r}: {_of_other_classes(model, weights) or mistake}')
    return report._replace(notes=notes, unexpected=[*report.unexpected, *others])


def _shared_prefix(model: nn.Module, weights: Mapping[str, Tensor], label: str) -> str:
    """Return the prefix under which a file has most of a model's weights; '' if there is none."""
    own = set(model.state_dict())
    counts = Counter()
    for name in weights:
        parts = name.split('.')
        for i in range(min(len(parts), _MAX_PREFIX)):
            if '.'.join(parts[i:]) in own:
                counts[''.join(f'{part}.' for part in parts[:i])] += 1
    most = max(counts.values(), default=0)
    best = [prefix for prefix, count in counts.items() if count == most]
    # Names such as norm.weight also end the names of other models' weights.
    if counts[''] == most or 2 * most <= len(own):
        return ''
    if len(best) > 1:
        raise ConfigError(
            f'{label}: has the model several times, under {", ".join(map(printable, best[:4]))}; '
            'save one of them alone'
        )
    return best[0]


def fill(model: nn.Module, weights: dict[str, Tensor], prefix: str = '') -> tuple[LoadReport, str]:
    """Load the weights that fit a model.

    Args:
        model: The model to load into.
        weights: Name -> tensor.
        prefix: Prefix of the names in the file, for the report.

    Returns:
        The report, and the error message, empty if no weight is missing.
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except Exception as error:
        # The first line of torch's message only names the model. The hooks of mmpretrain's models,
        # which resize and rename weights, raise exceptions of any kind.
        lines = [line.strip() for line in str(error).splitlines()]
        return LoadReport(0, [], []), _first(lines[1:] or lines) or type(error).__name__
    # A TimmClassifier adds a prefix to the names of timm.
    added = 'model.' if isinstance(model, TimmClassifier) else ''
    missing, unexpected = (
        [prefix + name.removeprefix(added) for name in names] for names in (missing, unexpected)
    )
    report = LoadReport(len(weights) - len(unexpected), missing, unexpected)
    if missing:
        return report, (
            f'{report}: the checkpoint must have all weights; missing {_first(missing)}; '
            f'unexpected {_first(unexpected) or "none"}'
        )
    return report, ''


def _convert(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to the current names and shapes of timm's model; {} if timm cannot."""
    if not isinstance(model, TimmClassifier):
        return {}
    module = importlib.import_module(type(model.model).__module__)
    convert = getattr(module, 'checkpoint_filter_fn', None)
    try:
        return convert(dict(weights), model.model) if convert else {}
    except Exception:
        # The conversion expects weights of the same family and fails in many ways on others. In
        # that case the caller reports how the unconverted weights differ from the model's.
        return {}


def _of_other_classes(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """Return the error message if the last layers only differ in the number of classes."""
    try:
        path = feature_tap(model).removesuffix(INPUT)
    except ConfigError:
        return ''
    own = getattr(model.get_submodule(path), 'weight', None)
    # The checkpoint of a TimmClassifier has timm's names.
    prefix = 'model.' if isinstance(model, TimmClassifier) else ''
    theirs = weights.get(f'{path.removeprefix(prefix)}.weight')
    if own is None or theirs is None or own.shape[1:] != theirs.shape[1:]:
        return ''
    if len(own) == len(theirs):
        return ''
    return (
        f'its head has {len(theirs)} classes, the model {len(own)}; fine-tune it on the '
        f'{len(own)} classes, or set num_classes={len(theirs)} if the data set has as many'
    )


def _first(items: Sequence[str], count: int = 4) -> str:
    rest = f' and {len(items) - count} more' if len(items) > count else ''
    return ', '.join(map(printable, items[:count])) + rest


def build_classifier(config: dict) -> nn.Module:
    """Build a classifier that keeps the weights that timm loads.

    Args:
        config: Config of an mmpretrain classifier.

    Returns:
        The classifier. If timm has loaded its weights (``pretrained=True`` or
        ``checkpoint_path``), ``init_weights`` keeps them, as in mmpretrain's TIMMBackbone.

    Raises:
        ConfigError: If the config does not describe a classifier.
    """
    classifier = MODELS.build(config)
    if not isinstance(classifier, BaseClassifier):
        raise ConfigError(f'type={config["type"]!r}: must be an mmpretrain classifier')
    if isinstance(classifier, TimmClassifier):
        classifier._is_init = bool(config.get('pretrained') or config.get('checkpoint_path'))
    return classifier


def is_cnn(model: nn.Module) -> bool:
    """Return whether a network has BatchNorm and no attention."""
    modules = list(model.modules())
    has_attention = any('Attention' in type(module).__name__ for module in modules)
    return any(isinstance(module, _BatchNorm) for module in modules) and not has_attention


def nest(classifier: nn.Module) -> None:
    """Make a classifier load its weights as a child of another module.

    A TimmClassifier's own hook would rename the keys of its parent, which would then be lost. The
    hook still runs when weights are loaded into the classifier itself, so that it accepts timm's
    checkpoints.
    """
    if isinstance(classifier, TimmClassifier):
        classifier._load_state_dict_pre_hooks.clear()
        classifier._register_load_state_dict_pre_hook(_add_timm_prefix_at_top)


def _add_timm_prefix_at_top(state_dict, prefix, *args) -> None:
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
            is a map, the neck is at least as wide as ``feature`` (MLDR-KD's rule for maps).

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
    if layouts[-1].is_map and 'feature' in teacher.tensors:
        found['project_dim'] = max(layouts[-1].channels, teacher.width('feature'))
    with named('neck'):
        neck = build_for(config, found)
        with evaluation_mode(neck):
            return neck, named_outputs(neck([student.tensors[stage] for stage in stages]))
