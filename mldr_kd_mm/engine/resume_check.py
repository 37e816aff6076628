"""What may change when a run is resumed: its config against the one stored in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from typing import Any, NamedTuple

from mmengine.hooks import EMAHook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor

from mldr_kd_mm.engine.parameter_groups import group_names, saved_names
from mldr_kd_mm.engine.training_state import check_training_state
from mldr_kd_mm.utils.dist import unwrap_model
from mldr_kd_mm.utils.errors import ConfigError, named, printable
from mldr_kd_mm.utils.nested import NOT_SET, iter_differences
from mldr_kd_mm.utils.safe_config import parse_config

# The fields that decide what a run computes. All others may change without a word.
_COMPARED = (
    'auto_scale_lr',
    'custom_hooks',
    'data_preprocessor',
    'default_hooks',
    'model',
    'optim_wrapper',
    'param_scheduler',
    'randomness',
    'train_cfg',
    'train_dataloader',
    'val_cfg',
    'val_dataloader',
    'val_evaluator',
)
# In these patterns of field names, * also stands for dots.
_IGNORED = (
    '*_dataloader.num_workers',
    '*_dataloader.persistent_workers',
    '*_dataloader.pin_memory',
    '*_dataloader.prefetch_factor',
    '*.init_cfg',
    '*.init_cfg.*',
    'default_hooks.figures*',
    'default_hooks.logger*',
    'default_hooks.progress*',
    'default_hooks.timer*',
    'optim_wrapper.optimizer.fused',
)
_APPLIED = ('model.teacher.data_preprocessor*', 'model.teacher.[0-9]*.data_preprocessor*')
# A run with another value is another run. Sizes are not in the list: other sizes do not fit the
# weights in the checkpoint.
_REFUSED = (
    'model',
    'model.type',
    'model.backbone.type',
    'model.model_name',
    'model.student',
    'model.student.type',
    'model.student.backbone.type',
    'model.student.model_name',
    'model.teacher',
    'model.teacher.*',
    'model.losses',
    'model.losses.*.loss',
    'model.losses.*.loss.type',
    'optim_wrapper.optimizer',
    'optim_wrapper.optimizer.type',
    'randomness.seed',
    'train_cfg.by_epoch',
    'train_cfg.type',
    'train_dataloader.dataset',
    'train_dataloader.dataset.type',
)
# The learning rates and other settings of the optimizer follow from these.
_SCHEDULED = ('auto_scale_lr*', 'optim_wrapper*', 'param_scheduler*', 'train_cfg.max_*')

_MAX_LINES = 30


class Change(NamedTuple):
    """A config field of a resumed run that differs from the checkpoint.

    Attributes:
        field: Dotted name of the field.
        before: The stored value; :data:`~mldr_kd_mm.utils.nested.NOT_SET` if there is none.
        now: The value of the resumed run.
    """

    field: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f'{printable(self.field)}: {_short(self.before)} -> {_short(self.now)}'


class Changes(NamedTuple):
    """All changes of a resumed run.

    Attributes:
        refused: Changes with which it would be another run.
        applied: Changes that take effect.
    """

    refused: list[Change]
    applied: list[Change]

    @property
    def of_schedule(self) -> bool:
        """Whether settings of the optimizer or its schedules change."""
        return any(_matches(change.field, _SCHEDULED) for change in self.applied)


def compare_configs(stored: Mapping[str, Any], present: Mapping[str, Any]) -> Changes:
    """Compare the config in a checkpoint with that of the run that resumes from it.

    Args:
        stored: The config in the checkpoint, plain values.
        present: The run's config, plain values.
    """
    changes = Changes([], [])
    for name in _COMPARED:
        pair = (_as_lists(config.get(name, NOT_SET)) for config in (stored, present))
        for change in map(Change._make, iter_differences(*pair, name)):
            if _matches(change.field, _IGNORED):
                continue
            is_refused = _matches(change.field, _REFUSED) and not _matches(change.field, _APPLIED)
            changes[0 if is_refused else 1].append(change)
    return changes


def unit_of(runner: Runner) -> tuple[str, str]:
    """Return the names in which a run counts: of its progress, and of its length."""
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    return ('epoch', 'max_epochs') if by_epoch else ('iter', 'max_iters')


def length_of(runner: Runner) -> int:
    """Return the length of a run in its unit, epochs or iterations."""
    return getattr(runner.train_loop, unit_of(runner)[1])


def check_resume(runner: Runner, checkpoint: dict[str, Any]) -> Changes:
    """Check that a run can resume from a checkpoint.

    Args:
        runner: The runner, with its model and optimizer.
        checkpoint: Content of the checkpoint; it is not changed.

    Returns:
        The changed settings, which take effect.

    Raises:
        ConfigError: It would be another run.
    """
    label = _label(runner)
    check_training_state(checkpoint, label)
    with named(label):
        changes = compare_configs(*_configs(runner, checkpoint))
        check_refused([*changes.refused, *_other_changes(runner, checkpoint)], label)
        if isinstance(runner, Runner):  # a strategy has its own form of the states
            check_optimizer_state(checkpoint, label)
            weights = unwrap_model(runner.model).state_dict()
            check_weights(checkpoint['state_dict'], weights, label)
            if not isinstance(runner.optim_wrapper, OptimWrapperDict):
                check_groups(checkpoint, names_of(runner), label)
    return changes


def log_changes(runner: Runner, meta: Mapping[str, Any], changes: Changes) -> None:
    """Log the changed settings of a resumed run, or that it has nothing left to train.

    Args:
        runner: The runner.
        meta: ``meta`` of the checkpoint.
        changes: The changes.
    """
    counter, field = unit_of(runner)
    if meta[counter] >= length_of(runner):
        title = f'the run is complete: train_cfg.{field}={length_of(runner)}; raise it to train on'
        effect = 'have no effect until then'
    else:
        title, effect = '', 'take effect'
    if changes.applied:
        lines = [f'  {change}' for change in changes.applied[:_MAX_LINES]]
        if len(changes.applied) > _MAX_LINES:
            lines.append(f'  and {len(changes.applied) - _MAX_LINES} more')
        differences = f'settings that differ from {runner._load_from} {effect}:'
        text = '; '.join(filter(None, [title, differences]))
        runner.logger.warning('\n'.join([f'resume: {text}', *lines]))
    elif title:
        runner.logger.info(f'resume: {title}')


def check_optimizer_state(checkpoint: Mapping[str, Any], label: str) -> None:
    """Check that a checkpoint has the state of an optimizer.

    Raises:
        ConfigError: It has none, like a best checkpoint or exported weights.
    """
    if 'optimizer' not in checkpoint:
        raise ConfigError(
            f'{label}: has no optimizer state, as in the best checkpoints; resume from an '
            'epoch_*.pth or iter_*.pth, or start a new run from its weights with load_from'
        )


def check_refused(refused: Sequence[Change], label: str) -> None:
    """Raise a ConfigError that names the changes with which a run cannot be resumed."""
    if refused:
        shown = [str(change) for change in refused[:3]]
        if len(refused) > 3:
            shown.append(f'and {len(refused) - 3} more')
        raise ConfigError(
            f'{label}: would be another run, {"; ".join(shown)}; restore the setting, or start a '
            'new run in another work directory (with load_from, from these weights)'
        )


def check_weights(saved: Mapping[str, Tensor], wanted: Mapping[str, Tensor], label: str) -> None:
    """Check that the weights in a checkpoint are exactly those of the model.

    Args:
        saved: The weights in the checkpoint.
        wanted: The state dict of the model.
        label: What to call the checkpoint in error messages.

    Raises:
        ConfigError: They differ in a name or a shape.
    """
    saved = {name.removeprefix('module.'): value for name, value in saved.items()}
    misfits = [
        f'{printable(name)} is {_shape(saved.get(name))} in the checkpoint and '
        f'{_shape(wanted.get(name))} in the model'
        for name in saved | wanted
        if _shape(saved.get(name)) != _shape(wanted.get(name))
    ]
    if misfits:
        more = f', and {len(misfits) - 1} more differ' if len(misfits) > 1 else ''
        raise ConfigError(
            f'{label}: does not fit the model: {misfits[0]}{more}; restore the model, or start a '
            'new run in another work directory'
        )


def names_of(runner: Runner) -> list[list[str]]:
    """Return the names of the parameters in each group of a run's optimizer."""
    groups = runner.optim_wrapper.optimizer.param_groups
    return group_names(unwrap_model(runner.model), groups)


def check_groups(checkpoint: Mapping[str, Any], present: list[list[str]], label: str) -> None:
    """Check that the parameter groups in a checkpoint fit the optimizer.

    Args:
        checkpoint: Content of the checkpoint.
        present: The names of the parameters in each group of the optimizer.
        label: What to call the checkpoint in error messages.

    Raises:
        ConfigError: If they have other parameters, or if the groups cannot be matched.
    """
    if saved_names(checkpoint, present) is None:
        saved = [group['params'] for group in checkpoint['optimizer']['param_groups']]
        groups = [
            f'{sum(map(len, each))} parameters in {len(each)} groups' for each in (saved, present)
        ]
        raise ConfigError(
            f'{label}: the optimizer had {groups[0]}, now {groups[1]}; restore '
            'optim_wrapper.paramwise_cfg and the frozen parameters'
        )


def _label(runner: Runner) -> str:
    return f'resume={str(runner._load_from or runner.work_dir)!r}'


def _configs(runner: Runner, checkpoint: dict[str, Any]) -> tuple[dict, dict]:
    """Return the stored and the present config; empty ones if they cannot be compared."""
    texts = checkpoint['meta'].get('cfg'), runner.cfg.pretty_text
    if not all(isinstance(text, str) and text.strip() for text in texts):  # built from objects
        return {}, {}
    try:
        stored, present = map(parse_config, texts)
    except ConfigError as error:
        runner.logger.warning(f'resume: the settings cannot be compared: {error}')
        return {}, {}
    return stored, present


def _other_changes(runner: Runner, checkpoint: dict[str, Any]) -> Iterator[Change]:
    """Yield changes that the configs do not show."""
    then = checkpoint['meta'].get('dataset_meta') or {}
    now = getattr(runner.train_loop.dataloader.dataset, 'metainfo', None) or {}
    classes = [list(meta.get('classes') or ()) for meta in (then, now)]
    if all(classes) and classes[0] != classes[1]:
        yield Change('classes of train_dataloader.dataset', *classes)
    averages = 'ema_state_dict' in checkpoint, any(isinstance(h, EMAHook) for h in runner.hooks)
    if averages[0] != averages[1]:
        yield Change('EMAHook in custom_hooks', *averages)


def _matches(field: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(field, pattern) for pattern in patterns)


def _as_lists(value: Any) -> Any:
    """Replace tuples by lists: a config does not always keep the difference."""
    if isinstance(value, Mapping):
        return {key: _as_lists(item) for key, item in value.items()}
    return [_as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else 'missing'


def _short(value: Any) -> str:
    text = printable(repr(value))
    return text if len(text) <= 60 else f'{text[:57]}...'
