"""Load the weights of a checkpoint into a model, and count them."""

from __future__ import annotations

import copy
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.model import PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner import CheckpointLoader
from mmpretrain.models import BaseClassifier, TimmClassifier
from torch import Tensor, nn

from mldr_kd_mm.models.taps.stages import INPUT, WRAPPERS, feature_tap
from mldr_kd_mm.utils.checkpoint import (
    find_state_dict,
    find_weights,
    load_checkpoint,
    use_safe_loading,
)
from mldr_kd_mm.utils.errors import ConfigError, printable

_MAX_PREFIX = 8  # parts of a prefix of all names
# Names that torchvision has, and neither timm nor mmpretrain: of MobileNets, EfficientNet, Swin and
# ConvNeXt, of ViT, of RegNet and of MaxViT.
_OF_TORCHVISION = re.compile(
    r'(features\.\d+\.(\d+|block|conv)|encoder\.layers\.encoder_layer_\d+|trunk_output\.block\d+'
    r'|blocks\.\d+\.layers\.\d+\.layers)\..*'
)
# Names in torchvision's files of DenseNet, from before its modules had the names of today.
_OLD_DENSENET = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')


class OtherClassesError(ConfigError):
    """The head of a checkpoint has another number of classes than the model.

    Attributes:
        problem: The message without the advice.
    """

    def __init__(self, label: str, theirs: int, own: int) -> None:
        self.problem = f'{label}: its head has {theirs} classes, the model {own}'
        super().__init__(
            f'{self.problem}; fine-tune it on the {own} classes, or set num_classes={theirs} if '
            'the data set has as many'
        )


class LoadReport(NamedTuple):
    """Summary of loading a checkpoint: names of its weights and conversions that were applied.

    Attributes:
        matched: Number of weights that were loaded.
        missing: Weights of the model that the file does not have, or not for as many classes.
        unexpected: Weights of the file that the model does not have.
        notes: Remarks for the log.
        new: Parts of a Distiller that are not in the file, such as ``neck``.
    """

    matched: int
    missing: list[str]
    unexpected: list[str]
    notes: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = (
            f'{self.matched} weights matched, {len(self.missing)} missing, '
            f'{len(self.unexpected)} unexpected'
        )
        absent = [f'not in the file: {", ".join(self.new)}'] if self.new else []
        return ', '.join((counts, *self.notes, *absent))

    def log(self, label: str) -> None:
        """Log the counts, and the names of weights that are missing or unexpected."""
        lists = dict(missing=self.missing, unexpected=self.unexpected)
        names = [f'; {kind}: {_first(found)}' for kind, found in lists.items() if found]
        print_log(f'{label}: {self}{"".join(names)}', 'current')


def load_weights(model: nn.Module, path: str, field: str, **options: Any) -> LoadReport:
    """Load the weights of a model from a file, see :func:`load_content`.

    Args:
        model: The model to load into.
        path: Path, URL or ``hf-hub:`` name of the checkpoint.
        field: Name of the config's field that holds the path, for the errors.
        **options: Further arguments of :func:`load_content`.

    Raises:
        MissingFileError: If the file does not exist.
        ConfigError: If a weight of the model is missing or has another shape, or the file holds the
            model under several prefixes.
    """
    return load_content(model, load_checkpoint(path, field), f'{field}={path!r}', **options)


def load_content(
    model: nn.Module,
    content: dict[str, Any],
    label: str,
    *,
    for_training: bool = False,
    allow_missing: Sequence[str] = (),
) -> LoadReport:
    """Load all weights of a model from the content of a checkpoint.

    A prefix that the weights of the model share in the file, such as Lightning's ``model.``, is
    removed. Weights that do not fit a model of timm or transformers go through their own conversion
    for that model, which handles the names in their files and, in timm, position embeddings for
    another image size.

    Args:
        model: The model to load into.
        content: Content of the checkpoint.
        label: What to call the checkpoint in error messages.
        for_training: Whether the model is trained from these weights. A head for another number of
            classes then keeps its initial weights, and so does one that the file lacks altogether.
        allow_missing: Patterns of the model's names, such as ``'head.*'``, that may be missing.

    Returns:
        The report.

    Raises:
        ConfigError: If any other weight of the model is missing or has another shape, or the file
            holds the model under several prefixes.
    """
    everything, notes = find_weights(content, label)
    prefix = _shared_prefix(model, everything, label)
    weights = {k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)}
    others = [name for name in everything if not name.startswith(prefix)]
    if prefix:
        notes = (*notes, f'under the prefix {printable(repr(prefix))}')
    for candidate, conversion in _conversions(model, weights):
        report, mistake = _try(model, candidate, prefix, for_training, allow_missing)
        if not mistake:
            notes = (*notes, *filter(None, [conversion]), *report.notes)
            return report._replace(notes=notes, unexpected=[*report.unexpected, *others])
    if not for_training and (counts := _class_counts(model, candidate)):
        raise OtherClassesError(label, *counts)
    advice = (
        "; list weights that may be missing in init_cfg=dict(type='Pretrained', checkpoint=FILE, "
        'allow_missing=[...])'
    )
    found = _of_torchvision(everything)
    raise ConfigError(f'{label}: {found or mistake + advice * for_training}')


def _try(
    model: nn.Module,
    weights: dict[str, Tensor],
    prefix: str,
    for_training: bool,
    allow_missing: Sequence[str],
) -> tuple[LoadReport, str]:
    """Load weights as :func:`fill` does; for training also without those of another head."""
    report, mistake = fill(model, weights, prefix, allow_missing)
    if mistake and for_training:
        head, note = _new_head(model, weights, report)
        if head:
            kept = {name: value for name, value in weights.items() if name not in head}
            report, mistake = fill(model, kept, prefix, [*allow_missing, *head])
            report = report._replace(notes=(note,))
    return report, mistake


def _conversions(
    model: nn.Module, weights: dict[str, Tensor]
) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Yield the weights as they are, then with newer names or as their library converts them."""
    yield weights, ''
    renamed = {_OLD_DENSENET.sub(r'\1\2', name): value for name, value in weights.items()}
    if renamed.keys() != weights.keys():
        yield renamed, 'with the newer names of DenseNet'
    for library, convert in dict(timm=_of_timm, transformers=_of_transformers).items():
        try:
            converted = convert(model, weights)
        except Exception:
            # The conversion expects weights of the same family and fails in many ways on others. In
            # that case the caller reports how the unconverted weights differ from the model's.
            continue
        if converted:
            yield converted, f'converted by {library}'


def count_classes(model: nn.Module, content: dict[str, Any], label: str) -> int | None:
    """Return the number of classes of a checkpoint's head.

    Args:
        model: The classifier that the checkpoint is of, for any number of classes.
        content: Content of the checkpoint.
        label: What to call the checkpoint in error messages.

    Returns:
        The number; None if the file has no such head.

    Raises:
        ConfigError: If it has no weights.
    """
    weights, _ = find_weights(content, label)
    head = weights.get(f'{_shared_prefix(model, weights, label)}{head_of(model)}.weight')
    return None if head is None else len(head)


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


def fill(
    model: nn.Module,
    weights: dict[str, Tensor],
    prefix: str = '',
    allow_missing: Sequence[str] = (),
) -> tuple[LoadReport, str]:
    """Load the weights that fit a model.

    Args:
        model: The model to load into.
        weights: Name -> tensor.
        prefix: Prefix of the names in the file, for the report.
        allow_missing: Patterns of names that may be missing.

    Returns:
        The report, and the error message, empty if no other weight is missing.
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except Exception as error:
        # The first line of torch's message only names the model. The hooks of mmpretrain's models,
        # which resize and rename weights, raise exceptions of any kind.
        lines = [line.strip() for line in str(error).splitlines()]
        return LoadReport(0, [], []), _first(lines[1:] or lines) or type(error).__name__
    # These add a prefix to the names of timm and transformers.
    added = 'model.' if isinstance(model, WRAPPERS) else ''
    missing, unexpected = (
        [name.removeprefix(added) for name in names] for names in (missing, unexpected)
    )
    lost = [name for name in missing if not any(fnmatch(name, each) for each in allow_missing)]
    missing, lost, unexpected = (
        [prefix + name for name in names] for names in (missing, lost, unexpected)
    )
    report = LoadReport(len(weights) - len(unexpected), missing, unexpected)
    if lost:
        return report, (
            f'{report}: the checkpoint must have all weights; missing {_first(lost)}; '
            f'unexpected {_first(unexpected) or "none"}'
        )
    return report, ''


def _of_timm(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to the current names and shapes of timm's model; {} if timm cannot."""
    if not isinstance(model, TimmClassifier):
        return {}
    module = importlib.import_module(type(model.model).__module__)
    convert = getattr(module, 'checkpoint_filter_fn', None)
    return convert(dict(weights), model.model) if convert else {}


def _of_transformers(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights from the names in files of transformers; {} for other models."""
    module = getattr(model, 'model', None)
    kinds = {kind.__name__ for kind in type(module).mro()}  # transformers may not be installed
    if not isinstance(model, WRAPPERS) or 'PreTrainedModel' not in kinds:
        return {}
    loaded, report = type(module).from_pretrained(
        None,
        config=copy.deepcopy(module.config),
        state_dict=dict(weights),
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    absent = {*report['missing_keys'], *(name for name, *_ in report['mismatched_keys'])}
    found = {name: value for name, value in loaded.state_dict().items() if name not in absent}
    return found | {name: weights[name] for name, *_ in report['mismatched_keys']}


def head_of(model: nn.Module) -> str:
    """Return the path of a classifier's last linear layer, as in its state dict.

    Args:
        model: The classifier.

    Returns:
        The path; '' if it is unknown.
    """
    if not isinstance(model, BaseClassifier):
        return ''
    try:
        path = feature_tap(model).removesuffix(INPUT)
    except (ConfigError, AttributeError):  # the latter without a head
        return ''
    # Their checkpoints have the names of timm or transformers.
    return path.removeprefix('model.') if isinstance(model, WRAPPERS) else path


def _class_counts(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Return the classes of a file's head and of the model's; None unless only these differ."""
    name = f'{head_of(model)}.weight'
    own, theirs = model.state_dict().get(name), weights.get(name)
    if own is None or theirs is None or own.shape[1:] != theirs.shape[1:]:
        return None
    return (len(theirs), len(own)) if len(own) != len(theirs) else None


def _new_head(
    model: nn.Module, weights: Mapping[str, Tensor], report: LoadReport
) -> tuple[list[str], str]:
    """Return the weights of a head that starts anew, and a note; nothing if there is no such head.

    Args:
        model: The model.
        weights: The weights of the file.
        report: The report of the attempt to load them.
    """
    own, path = model.state_dict(), head_of(model)
    counts = _class_counts(model, weights)
    if counts is not None:
        names = [  # a distilled DeiT has two heads
            name
            for name, value in weights.items()
            if name in own
            and (value.shape[:1], own[name].shape[:1]) == ((counts[0],), (counts[1],))
            and value.shape[1:] == own[name].shape[1:]
        ]
        sizes = f'{counts[0]} classes in the file, {counts[1]} in the model'
        return names, f'the head {path} starts anew: {sizes}'
    names = [name for name in own if path and name.startswith(f'{path}.')]
    if names and not report.unexpected and not any(name in weights for name in names):
        return names, f'the head {path} starts anew: not in the file'
    return [], ''


def _of_torchvision(weights: Mapping[str, Tensor]) -> str:
    """Return the error message if the names are torchvision's own."""
    names = [name for name in weights if _OF_TORCHVISION.fullmatch(name)]
    if 2 * len(names) < len(weights):
        return ''
    return (
        f"these are torchvision's names: {_first(names, 2)}; timm and mmpretrain have other names "
        "for this architecture: use a checkpoint of theirs, or torchvision's own model, "
        "'torchvision/NAME'"
    )


def _first(items: Sequence[str], count: int = 4) -> str:
    rest = f' and {len(items) - count} more' if len(items) > count else ''
    return ', '.join(map(printable, items[:count])) + rest


class CountingPretrainedInit(PretrainedInit):
    """mmengine's ``Pretrained`` initializer, which requires that the weights arrive.

    Args:
        checkpoint: Path, URL or ``hf-hub:`` name of the weights, in any format that
            :mod:`mldr_kd_mm.utils.checkpoint` reads.
        prefix: Prefix of the weights in the file. None: the one that they share.
        map_location: Not used; mmengine has this argument.
        allow_missing: Patterns of the module's names that may be missing, such as ``'pos_embed'``.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        map_location: Any = 'cpu',
        allow_missing: Sequence[str] = (),
    ) -> None:
        super().__init__(checkpoint, prefix, map_location)
        self.allow_missing = allow_missing

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into a module.

        Raises:
            ConfigError: A weight of the module is missing from the file.
        """
        label = f'checkpoint={self.checkpoint!r}'
        content = CheckpointLoader.load_checkpoint(self.checkpoint, 'cpu')
        if self.prefix is not None:
            content = _under(self.prefix, content, label)
        report = load_content(
            module, content, label, for_training=True, allow_missing=self.allow_missing
        )
        report.log(f'init_cfg of {type(module).__name__}: {label}')
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=self._get_init_info())


def _under(prefix: str, content: dict[str, Any], label: str) -> dict[str, Any]:
    """Return the weights under a prefix, without it."""
    prefix = f'{prefix.removesuffix(".")}.'
    weights = find_state_dict(content, label).tensors
    found = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    if not found:
        tops = sorted({name.partition('.')[0] for name in weights})
        raise ConfigError(
            f'{label}: prefix={prefix!r}: no weight begins with it; names begin with {_first(tops)}'
        )
    return dict(state_dict=found)


def use_counted_loading() -> None:
    """Make mmengine read checkpoints safely and count their weights until this process ends.

    See :func:`~mldr_kd_mm.utils.checkpoint.use_safe_loading`. This replaces the initializer of
    ``init_cfg=dict(type='Pretrained', ...)``; the
    :class:`~mldr_kd_mm.engine.hooks.LoadWeightsHook` does the same for ``load_from``.
    """
    use_safe_loading()
    WEIGHT_INITIALIZERS.register_module('Pretrained', force=True, module=CountingPretrainedInit)
