"""Check the training state in a checkpoint before hooks and the Runner use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from mldr_kd_mm.utils.errors import ConfigError, is_number, printable


def names_checkpoint(key: Any) -> bool:
    """Return whether an entry of the message hub names a checkpoint."""
    return key in ('last_ckpt', 'interim_ckpt', 'best_ckpt') or str(key).startswith('best_ckpt_')


def check_training_state(checkpoint: Mapping[str, Any], label: str) -> None:
    """Check the types of what mmengine and the hooks read from a checkpoint when a run resumes.

    The weights and the states of the optimizer and its schedules are checked where they are loaded.

    Args:
        checkpoint: Content of the checkpoint.
        label: What to call the checkpoint in error messages.

    Raises:
        ConfigError: A field is missing or has a wrong type.
    """
    for field, value, is_valid, wanted in _fields(checkpoint):
        if not is_valid(value):
            shown = printable(repr(value)) if value is not _MISSING else 'missing'
            raise ConfigError(f'{label}: {field}={shown}: must be {wanted}')


_MISSING = object()
_Check = tuple[str, Any, Callable[[Any], bool], str]


def _fields(checkpoint: Mapping[str, Any]) -> Iterator[_Check]:
    """Yield field, value, check and its description; a container comes before its content."""
    for name in ('meta', 'message_hub'):
        yield name, checkpoint.get(name, _MISSING), _is_dict, 'a dict'
    meta, hub = checkpoint['meta'], checkpoint['message_hub']
    for name in ('epoch', 'iter'):
        yield f'meta.{name}', meta.get(name, _MISSING), _is_count, 'a number, 0 or more'
    for name in ('seed', 'schedule_length'):
        if meta.get(name) is not None:
            yield f'meta.{name}', meta[name], _is_count, 'a number, 0 or more'
    if meta.get('run') is not None:
        yield 'meta.run', meta['run'], _is_dict, 'a dict'
    if meta.get('parameter_groups') is not None:
        groups = _is_list_of(_is_list_of(lambda item: isinstance(item, str)))
        yield 'meta.parameter_groups', meta['parameter_groups'], groups, 'lists of names'
    if meta.get('steps') is not None:
        yield from _steps(meta['steps'])
    for name in ('log_scalars', 'runtime_info', 'resumed_keys'):
        yield f'message_hub.{name}', hub.get(name, _MISSING), _is_dict, 'a dict'
    saved = {*hub['log_scalars'], *hub['runtime_info']}
    for name, value in hub['resumed_keys'].items():
        if name in saved:
            yield f'message_hub.resumed_keys.{name}', value, lambda value: value is True, 'True'
    yield from _runtime_info(hub['runtime_info'])


def _steps(steps: Any) -> Iterator[_Check]:
    yield 'meta.steps', steps, _is_dict, 'a dict'
    for name in ('processes', 'batch_size', 'iters_per_epoch'):
        value = steps.get(name, _MISSING)
        yield f'meta.steps.{name}', value, lambda value: _is_count(value) and value > 0, 'positive'


def _runtime_info(info: Mapping[str, Any]) -> Iterator[_Check]:
    for name, value in info.items():
        field = f'message_hub.runtime_info.{name}'
        if names_checkpoint(name):
            yield field, value, lambda value: value is None or isinstance(value, str), 'a path'
        elif name in ('last_validated_epoch', 'skipped_steps'):
            yield field, value, _is_count, 'a number, 0 or more'
        elif name == 'keep_ckpt_ids':
            yield field, value, _is_list_of(_is_count), 'a list of numbers, 0 or more'
        elif name == 'outdated_ckpts':
            yield field, value, _is_list_of(lambda item: isinstance(item, str)), 'a list of names'
        elif name == 'best_score' or str(name).startswith('best_score_'):
            yield field, value, _is_metric, 'a number'
        elif name == 'teacher_metrics':
            yield field, value, _are_metrics, 'a dict of numbers'


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_list_of(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _is_metric(value: Any) -> bool:
    return is_number(value) or (isinstance(value, Tensor) and value.numel() == 1)


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_metric, value.values()))
