"""Build the models and data sets of a stored config without running code that it names.

A config stored in a checkpoint or a work directory may come from anyone. mmengine imports and calls
any dotted ``type``, and reads pickles and YAML tags, which are programs.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from mmengine.fileio.io import file_handlers
from mmengine.registry import Registry

from mldr_kd_mm import registry as registries
from mldr_kd_mm.utils.errors import ConfigError, describe, printable

_PROGRAMS = ('pickle', 'pkl', 'yaml', 'yml')
_WEIGHTS = ('checkpoint_path', 'init_cfg', 'pretrained', 'teacher_checkpoint', 'tokenizer_path')
# torch.compile runs the compiler that its options name.
_COMPILE = ('losses_compile', 'student_compile', 'teacher_compile')
_IGNORED = ('cache_dir', 'trust_remote_code', *_COMPILE)
_TORCHVISION = 'torchvision.models:'
# Defaults of these models that depend on whether they have weights.
_WITH_WEIGHTS = dict(
    googlenet=dict(transform_input=True, aux_logits=False),
    inception_v3=dict(transform_input=True),
)
_LOCAL = ('disk', 'local')  # the backends that import nothing: mmengine's old name and its new one
# What these modules register unpickles files or runs code from the Hugging Face hub.
_NOT_BUILT = ('mmpretrain.models.multimodal', 'mmpretrain.models.retrievers', 'transformers')
_trusted: set[str] = set()


def import_modules(names: Sequence[str]) -> None:
    """Import modules that the user trusts, so that what they register or contain can be built.

    Args:
        names: Names of the modules.

    Raises:
        ConfigError: A module cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ConfigError(f'--imports {name}: cannot be imported: {describe(error)}') from error
        _trusted.add(name)


def is_trusted(module: str) -> bool:
    """Return whether the user has imported a module, or its package, by ``--imports``."""
    parts = module.split('.')
    return any('.'.join(parts[: end + 1]) in _trusted for end in range(len(parts)))


def check_types(config: Any, field: str, custom_imports: Any = None) -> Any:
    """Return a copy of a part of a stored config in which every ``type`` is registered.

    A dotted path, which lazy configs store, becomes the name of the class that its package has
    registered. ``trust_remote_code``, ``cache_dir`` and the options of ``torch.compile`` are
    removed, and no data set downloads its files. A class with a ``check_stored(config, field)``
    checks its own arguments.

    Args:
        config: The part: a dict, a list, a tuple or a plain value.
        field: Name of the part, for error messages.
        custom_imports: The field of that name in the stored config. Nothing of it is imported.

    Raises:
        ConfigError: A ``type`` or a ``_scope_`` is not registered, or another argument names a
            program.
    """
    if isinstance(config, (list, tuple)):
        return type(config)(
            check_types(item, f'{field}.{number}', custom_imports)
            for number, item in enumerate(config)
        )
    if not isinstance(config, dict):
        return config
    checked = {
        key: check_types(value, f'{field}.{printable(key)}', custom_imports)
        for key, value in config.items()
        if key not in _IGNORED
    }
    kind = config.get('type')
    if 'type' in config and not callable(kind):  # only a program holds a class
        found = _find(kind)
        if found is None:
            raise ConfigError(
                f'{field}.type={printable(kind)!r}: is not registered; {_advice(custom_imports)}'
            )
        checked['type'], cls = found
        if _can_download(cls):
            checked['download'] = False
        if hasattr(cls, 'check_stored'):
            cls.check_stored(config, field)
    scope = config.get('_scope_')
    if scope is not None and not _is_scope(scope):
        raise ConfigError(
            f'{field}._scope_={printable(scope)!r}: is not registered; {_advice(custom_imports)}'
        )
    # mmpretrain evaluates the dtype of torchvision's transforms as an expression.
    if not re.fullmatch(r'[\w.]*', str(config.get('dtype', ''))):
        raise ConfigError(f'{field}.dtype={printable(config["dtype"])!r}: must be a name')
    for name in ('backend_args', 'file_client_args'):
        # mmengine's memcached backend imports a module from any folder that it is given.
        arguments = config.get(name)
        if arguments and not (isinstance(arguments, dict) and arguments.get('backend') in _LOCAL):
            raise ConfigError(f"{field}.{name}: must be None or dict(backend='local')")
    return checked


@contextmanager
def registered_names_only() -> Iterator[None]:
    """Let mmengine find registered names only, and nothing read a pickle or YAML.

    Other strings than a ``type`` also reach the registries, such as ``norm_layer``, ``conv_type``
    and ``_scope_``. Some models read weights while they are built, with loaders that fall back to
    executing the file, so torch itself must refuse.
    """

    def imported(name: str) -> ModuleType:
        if name not in sys.modules:
            raise ImportError(f'{name}: is not imported for a stored config')
        return sys.modules[name]

    list(_registries())  # import what registers their modules first
    with (
        mock.patch('mmengine.registry.registry.import_module', imported),
        mock.patch('mmengine.registry.registry.get_object_from_string', lambda name: None),
        mock.patch.dict(file_handlers),
        mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD='1'),
    ):
        os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)  # torch accepts only one of them
        for suffix in _PROGRAMS:
            del file_handlers[suffix]
        yield


def default_scope(config: Mapping[str, Any]) -> str:
    """Return the default scope of a stored config, or this package's if it is not imported."""
    scope = config.get('default_scope')
    return scope if _is_scope(scope) else registries.SCOPE


def without_weights(config: Any) -> Any:
    """Copy the config of a model whose weights are loaded afterwards, without other weights."""
    if isinstance(config, Mapping) and str(config.get('module')).startswith(_TORCHVISION):
        config = {**config, 'kwargs': _without_torchvision_weights(config)}
    return without_fields(config, _WEIGHTS)


def _without_torchvision_weights(config: Mapping[str, Any]) -> Any:
    """Return the arguments of a model of torchvision that would otherwise download its weights."""
    kwargs = config.get('kwargs')
    if not isinstance(kwargs, Mapping) or kwargs.get('weights') is None:
        return kwargs
    name = config['module'].removeprefix(_TORCHVISION)
    return {**_WITH_WEIGHTS.get(name, {}), **kwargs, 'weights': None}


def without_fields(config: Any, names: Sequence[str]) -> Any:
    """Copy a config without some fields, at every depth."""
    if isinstance(config, dict):
        return {k: without_fields(v, names) for k, v in config.items() if k not in names}
    if isinstance(config, (list, tuple)):
        return type(config)(without_fields(item, names) for item in config)
    return config


def _registries() -> Iterator[Registry]:
    """Yield the registries of all parts of models and data sets, with what they register."""
    for name in (
        'MODELS',
        'WEIGHT_INITIALIZERS',
        'BATCH_AUGMENTS',
        'TASK_UTILS',
        'DATASETS',
        'TRANSFORMS',
    ):
        root = getattr(registries, name)
        while root.parent is not None:  # an empty registry is false
            root = root.parent
        yield from _tree(root)


def _tree(registry: Registry) -> Iterator[Registry]:
    try:
        registry.import_from_location()
    except ImportError:
        # mmpretrain also adds the registries of an mmdetection that lacks mmcv's operations.
        registry._imported = True
    yield registry
    for child in registry.children.values():
        yield from _tree(child)


def _is_scope(scope: Any) -> bool:
    return any(registry.scope == scope for registry in _registries())


def _find(kind: Any) -> tuple[str, Any] | None:
    """Return a registered name for a ``type``, and what it stands for; this imports nothing."""
    if not isinstance(kind, str):
        return None
    prefix, _, name = kind.rpartition('.')
    found = None
    for registry in _registries():
        module = registry.module_dict.get(name)
        package = getattr(module, '__module__', '')
        if module is None or package.startswith(_NOT_BUILT):
            continue
        if prefix in ('', registry.scope):
            return kind, module
        if prefix.partition('.')[0] == package.partition('.')[0]:
            found = f'{registry.scope}.{name}', module
    return found


def _can_download(cls: Any) -> bool:
    inits = [vars(base).get('__init__') for base in getattr(cls, '__mro__', ())]
    functions = filter(inspect.isfunction, inits)
    return any('download' in inspect.signature(init).parameters for init in functions)


def _advice(custom_imports: Any) -> str:
    wanted = custom_imports.get('imports') if isinstance(custom_imports, Mapping) else None
    names = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(names, (list, tuple)) or not names:
        return 'if you trust the package that registers it, add --imports PACKAGE'
    modules = printable(' '.join(map(str, names)))
    return f'the run imported its own modules; if you trust them, add --imports {modules}'
