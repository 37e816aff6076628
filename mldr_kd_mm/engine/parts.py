"""Check the parts of a config: the type of each, and the names of its arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mmengine.registry import Registry

from mldr_kd_mm import registry as own
from mldr_kd_mm.utils.errors import ConfigError, check_config, describe, did_you_mean, named

_KEYS_OF_MMENGINE = {'type', '_scope_'}
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_TYPO = 0.8  # similarity of names above which an argument that a class may accept is a typo


def find_type(config: Mapping[str, Any], registry: Registry, field: str) -> Callable[..., Any]:
    """Return the class that a part's ``type`` stands for.

    Args:
        config: Config of the part.
        registry: The registry of such parts.
        field: Name of the part in the config, for errors.

    Raises:
        ConfigError: ``config`` is not a dict with a registered type.
    """
    check_config(**{field: config})
    kind = config['type']
    found = kind if callable(kind) else _look_up(kind, registry, config.get('_scope_'))
    if found is None:
        raise ConfigError(_unknown_type(field, kind, registry))
    return found


def check_arguments(
    function: Callable[..., Any], names: Iterator[str] | Mapping[str, Any], field: str
) -> None:
    """Check that a class takes the arguments that a config gives it.

    A class with ``**kwargs`` may take any name, also one that it only uses hours later. A name that
    it does not list is then refused if it looks like one that it does.

    Args:
        function: The class or function.
        names: Names of the arguments.
        field: Name of the part in the config.

    Raises:
        ConfigError: A name is unknown or looks misspelt.
    """
    known, is_open = _parameters(function)
    for name in names:
        if name in known or name in _KEYS_OF_MMENGINE:
            continue
        hint = did_you_mean(name, known, _TYPO)
        if hint or not is_open:
            raise ConfigError(_unknown_argument(f'{field}.{name}', function, hint))


def building(config: Any, field: str) -> AbstractContextManager[None]:
    """Name the field of a config that made building a part fail.

    Args:
        config: Config of the part.
        field: Name of the part in the config.

    Raises:
        ConfigError: Replaces every other exception.
    """
    return named(field, lambda error: _explain(error, config, field))


@contextmanager
def part(config: Any, registry: Registry, field: str) -> Iterator[None]:
    """Check a part's type and arguments, and name it in the errors of the code that builds it.

    Args:
        config: Config of the part.
        registry: The registry of such parts.
        field: Name of the part in the config.

    Raises:
        ConfigError: The type or an argument is unknown, or building the part fails.
    """
    check_arguments(find_type(config, registry, field), config, field)
    with building(config, field):
        yield


def find_fields(config: Any, name: str, field: str) -> Iterator[tuple[str, Any]]:
    """Yield the paths and values of all fields with a name, at any depth of a config."""
    if isinstance(config, Mapping):
        items = list(config.items())
    else:
        items = list(enumerate(config)) if isinstance(config, (list, tuple)) else []
    for key, value in items:
        if key == name:
            yield f'{field}.{key}', value
        yield from find_fields(value, name, f'{field}.{key}')


def _look_up(kind: Any, registry: Registry, scope: str | None) -> Callable[..., Any] | None:
    if not isinstance(kind, str):
        return None
    with registry.switch_scope_and_registry(scope) as found:
        try:
            return found.get(kind)
        except Exception:  # a dotted name that cannot be imported fails in many ways
            return None


def _parameters(function: Callable[..., Any]) -> tuple[list[str], bool]:
    """Return the parameters of a class and its bases, and whether there may be others."""
    inits = [vars(base).get('__init__') for base in getattr(function, '__mro__', ())[:-1]]
    names: dict[str, None] = {}
    for init in filter(None, inits) if inits else [function]:
        try:
            parameters = list(inspect.signature(init).parameters.values())
        except (TypeError, ValueError):  # written in C
            return list(names), True
        names |= dict.fromkeys(p.name for p in parameters if p.kind in _NAMED and p.name != 'self')
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return list(names), init is not next(filter(None, inits), init)
    return list(names), True


def _explain(error: Exception, config: Any, field: str) -> str:
    """Return the message for an error of mmengine's ``build``, with the field that caused it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if match := re.search(r"unexpected keyword argument '(\w+)'", text):
        found = list(find_fields(config, match[1], field))
        if len(found) == 1:
            path = found[0][0]
            function = _owner(config, path.removeprefix(f'{field}.'))
            hint = did_you_mean(match[1], _parameters(function)[0]) if function else ''
            return _unknown_argument(path, function, hint)
    if match := re.search(r'(\S+) is not in the \S+::(.+?) registry', text):
        registry = next((each for each in _registries() if each.name == match[2]), None)
        paths = [path for path, kind in find_fields(config, 'type', field) if kind == match[1]]
        if registry is not None and len(paths) == 1:
            return _unknown_type(paths[0].removesuffix('.type'), match[1], registry)
    return f'{field}: {describe(error)}'


def _owner(config: Any, path: str) -> Callable[..., Any] | None:
    """Return the class of the dict that holds the field at a path."""
    for key in path.split('.')[:-1]:
        config = config[int(key) if isinstance(config, (list, tuple)) else key]
    kind = config.get('type')
    if callable(kind):
        return kind
    # mmpretrain has no registry for strategies, about which mmengine would warn.
    registries = (registry for registry in _registries() if registry.name != 'strategy')
    found = (_look_up(kind, registry, config.get('_scope_')) for registry in registries)
    return next(filter(None, found), None)


def _registries() -> Iterator[Registry]:
    return (value for value in vars(own).values() if isinstance(value, Registry))


def _unknown_type(field: str, kind: Any, registry: Registry) -> str:
    names: set[str] = set()
    found: Registry | None = registry
    while found is not None:
        names |= found.module_dict.keys()
        found = found.parent
    hint = did_you_mean(kind, names) or 'import the module that registers it in custom_imports'
    return f'{field}.type: there is no {registry.name} {kind!r}; {hint}'


def _unknown_argument(path: str, function: Callable[..., Any] | None, hint: str) -> str:
    name = getattr(function, '__name__', None) or 'its type'
    advice = hint or (
        'remove it; if a base config sets it, replace the whole dict by dict(_delete_=True, ...)'
    )
    return f'{path}: {name} takes no such argument; {advice}'
