"""Fields of a config that a search varies, and their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from mmengine.config import Config
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from mldr_kd_mm.engine.arguments import set_learning_rate
from mldr_kd_mm.utils.errors import ConfigError, did_you_mean, is_number, named

LEARNING_RATE = 'optim_wrapper.optimizer.lr'
# The learning rate of every method, as factors of the recipe's.
_LOWEST, _HIGHEST = 1 / 4, 4

_SCALARS = (bool, int, float, str, type(None))

Space = dict[str, BaseDistribution]


def make_space(ranges: Mapping[str, Any], cfg: Config, method: str) -> Space:
    """Return the fields that the search varies for a method.

    Args:
        ranges: The method's ``search_space``: dotted field -> ``dict(low=..., high=...)``, with
            ``log=True`` or a ``step`` if desired, or ``dict(choices=[...])``.
        cfg: The composed config.
        method: Name of the method, for errors.

    Returns:
        Field -> distribution. The learning rate is always among them, by default from a quarter to
        four times the recipe's.

    Raises:
        ConfigError: If the config has no such field, or a range is invalid.
    """
    learning_rate = get_field(cfg, LEARNING_RATE, method)
    default = dict(low=learning_rate * _LOWEST, high=learning_rate * _HIGHEST, log=True)
    space = {}
    for field, limits in {LEARNING_RATE: default, **ranges}.items():
        container, _ = _locate(cfg, field, method)
        if isinstance(container, tuple):
            raise ConfigError(
                f'method={method!r}: search_space names {field}, but the config has a tuple there; '
                'write it as a list'
            )
        if field.split('.')[:2] in (['train_dataloader', 'dataset'], ['val_dataloader', 'dataset']):
            raise ConfigError(
                f'method={method!r}: search_space names {field}, but the trials of a search share '
                'their data; remove it'
            )
        name = f'method={method!r}: search_space {field}'
        names = set(limits) if isinstance(limits, Mapping) else set()
        if 'choices' not in names and not {'low', 'high'} <= names:
            raise ConfigError(f'{name}={limits!r}: must be dict(low=, high=) or dict(choices=[])')
        with named(name):
            choices = list(limits.get('choices', []))
            if not all(isinstance(choice, _SCALARS) for choice in choices):
                raise ConfigError(
                    f'{name}: choices={choices!r}: must be numbers, strings or True, False'
                )
            kind = CategoricalDistribution if 'choices' in limits else FloatDistribution
            space[field] = kind(**limits)
    return space


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Return the values of a trial: field -> value."""
    values = {}
    for field, limits in space.items():
        if isinstance(limits, CategoricalDistribution):
            values[field] = trial.suggest_categorical(field, limits.choices)
        else:
            step = dict(step=limits.step, log=limits.log)
            values[field] = trial.suggest_float(field, limits.low, limits.high, **step)
    return values


def own_values(cfg: Config, space: Space, method: str) -> dict[str, Any]:
    """Return the values of the config itself, without those outside of their range."""
    values = {field: get_field(cfg, field, method) for field in space}
    return {field: value for field, value in values.items() if _contains(space[field], value)}


def _contains(limits: BaseDistribution, value: Any) -> bool:
    if isinstance(limits, CategoricalDistribution):
        return value in limits.choices
    return is_number(value) and limits.low <= value <= limits.high


def get_field(cfg: Config, field: str, method: str) -> Any:
    """Return the value of a dotted field.

    Raises:
        ConfigError: The config has no such field.
    """
    container, key = _locate(cfg, field, method)
    return container[key]


def set_fields(cfg: Config, values: Mapping[str, Any], method: str) -> None:
    """Set fields of a config. The learning rates of schedules keep their ratio to the peak."""
    for field, value in values.items():
        if field == LEARNING_RATE:
            set_learning_rate(cfg, value)
        else:
            container, key = _locate(cfg, field, method)
            container[key] = value


def short(value: Any) -> str:
    """Return a value as text, a number with four digits."""
    return f'{value:.4g}' if is_number(value) else repr(value)


def _locate(cfg: Config, field: str, method: str) -> tuple[Any, Any]:
    """Return the innermost container of a field, and the field's key in it."""
    container, *keys = cfg, *field.split('.')
    for place, key in enumerate(keys):
        if isinstance(container, (list, tuple)):
            known = [str(number) for number in range(len(container))]
        else:
            known = list(container) if isinstance(container, Mapping | Config) else []
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(
                f'method={method!r}: search_space names {field}, but its config has no '
                f'{".".join(keys[: place + 1])}{hint and "; "}{hint}'
            )
        key = int(key) if isinstance(container, (list, tuple)) else key
        if place == len(keys) - 1:
            return container, key
        container = container[key]
    raise AssertionError('a field has one key or more')
