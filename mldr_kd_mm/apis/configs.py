"""Shipped configs, and the composition of a pair of models with a method."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import filter as matching
from pathlib import Path
from typing import IO, Any
from unittest import mock

import torch
import yaml
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio.handlers import YamlHandler
from mmengine.fileio.io import file_handlers
from mmengine.utils import import_modules_from_strings

from mldr_kd_mm.models.builder import build_classifier, is_cnn
from mldr_kd_mm.utils.errors import ConfigError, check_file, describe, did_you_mean, named
from mldr_kd_mm.utils.logging import log_warnings_only

# A wheel carries the files here. In the repository, which an editable install uses, these are links
# to the folders next to the package.
MIM = Path(__file__).parents[1] / '.mim'
CONFIGS = MIM / 'configs'
METHODS = '_base_/methods'
PAIRS = 'pairs'
TEACHERS = 'teachers'
SCRATCH = 'scratch'
"""The method that trains the student of a pair alone."""

# The variant that a method's authors use for CNN students.
_FOR_CNN_STUDENTS = {'ofa': 'ofa_cnn'}
# Methods that had a config for each pair before --method.
_OLD_FOLDERS = 'kd|dkd|dist|ls|ofa|rkd|cc|crd|rsd|fitnet'

# mmengine resolves 'NAME::mldr/…' only for the names in this table, and looks for .mim next to the
# distribution or module that the table gives. It looks for distributions only in site-packages,
# which does not contain an editable install; a module next to .mim is found in both cases.
MODULE2PACKAGE['mldr_kd_mm'] = 'mldr_kd_mm.registry'


def config_path(name: str) -> str:
    """Return the path of a shipped config, for ``Config.fromfile`` or another config's ``_base_``.

    ``_base_ = [__import__('mldr_kd_mm').config_path('mldr/deit_to_mobilenet_c100.py')]`` works in
    any config. ``_base_ = 'mldr_kd_mm::mldr/deit_to_mobilenet_c100.py'`` works if ``mldr_kd_mm`` is
    imported before the config is read.

    Args:
        name: A name from :func:`list_configs`, or a base, such as ``_base_/methods/mldr.py``.

    Returns:
        The path of the file.

    Raises:
        ConfigError: If no config has that name.
    """
    names = [path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob('*.py')]
    if name not in names:
        hint = did_you_mean(name, names, cutoff=0.5) or 'list_configs() returns all names'
        raise ConfigError(f'config_path({name!r}): there is no config of that name; {hint}')
    return str(CONFIGS / name)


def base_fields(*names: str) -> dict[str, Any]:
    """Return the fields of configs, for a config that cannot name them in ``_base_``.

    A lazy config (``with read_base():``) adds the fields of a shipped config with::

        globals().update(__import__('mldr_kd_mm').base_fields('mldr/deit_to_mobilenet_c100.py'))

    A field that several of the configs set is taken whole from the last one, unlike the fields of a
    ``_base_``, which are merged. So a data base after a pair replaces its data set, pipelines,
    loaders and metrics.

    Args:
        *names: Names from :func:`list_configs`, bases such as ``_base_/methods/mldr.py``, or paths
            of your own configs.

    Raises:
        ConfigError: If a config does not exist or cannot be read.
    """
    fields: dict[str, Any] = {}
    for name in names:
        path = name if os.path.isfile(name) else config_path(name)
        fields |= read_config(path).to_dict()
    return fields


def list_configs(pattern: str | None = None) -> list[str]:
    """Return the names of the shipped configs that ``tools/train.py`` accepts.

    A config in ``pairs/`` also needs a method: run ``tools/train.py PAIR --method NAME``, or write
    a config that inherits both.

    Args:
        pattern: None for all names, or a shell pattern, such as ``'mldr/*'`` or
            ``'*_to_resnet18_*'``.

    Returns:
        Sorted names, such as ``mldr/deit_to_mobilenet_c100.py``.
    """
    paths = [path.relative_to(CONFIGS) for path in CONFIGS.rglob('*.py')]
    names = [path.as_posix() for path in paths if path.parts[0] != '_base_']
    return sorted(matching(names, pattern or '*'))


def find_configs(folder: str) -> dict[str, Path]:
    """Return the configs in a folder by name, without ``.py``.

    Args:
        folder: A folder of the shipped configs, such as ``pairs``. The folder of the same name in
            ``configs/`` under the current directory is searched too and takes precedence.

    Returns:
        Name -> path.
    """
    roots = (CONFIGS, Path('configs'))
    paths = [path for root in roots for path in sorted((root / folder).glob('*.py'))]
    return {path.stem: path for path in paths}


def find_config(folder: str, name: str, field: str) -> Path:
    """Return the path of a config that is given by its name or its path.

    Args:
        folder: Folder in which the name is looked up, see :func:`find_configs`.
        name: A name, or a path that ends in ``.py``.
        field: Name of the argument, for error messages.

    Raises:
        ConfigError: If there is no such config.
    """
    if name.endswith('.py'):
        check_config_file(field, name)
        return Path(name)
    known = find_configs(folder)
    if name not in known:
        hint = did_you_mean(name, known) or f'give the path of a file, or one of {", ".join(known)}'
        raise ConfigError(f'{field}={name!r}: there is no configs/{folder}/{name}.py; {hint}')
    return known[name]


def find_all(field: str, folder: str, arguments: Sequence[str]) -> dict[str, Path | None]:
    """Return the configs that a command line lists.

    Args:
        field: Name of the argument, for error messages.
        folder: Folder in which names are looked up, see :func:`find_configs`.
        arguments: Names, or paths that end in ``.py``; ``scratch`` is a method without a file.

    Returns:
        Name, without folder and ``.py`` -> path; in the order of the arguments.

    Raises:
        ConfigError: If there is no such config, or two arguments have the same name.
    """
    found: dict[str, Path | None] = {}
    for argument in arguments:
        is_scratch = argument == SCRATCH and folder == METHODS
        path = None if is_scratch else find_config(folder, argument, field)
        name = path.stem if path else SCRATCH
        if name in found:
            raise ConfigError(
                f"{field}={argument!r}: '{name}' is given twice; give it once, or rename the file"
            )
        found[name] = path
    return found


def config_of_teacher(checkpoint: Path) -> Path | None:
    """Return the config that trains a teacher checkpoint, if there is one.

    Args:
        checkpoint: Path of the checkpoint, whose folder has the name of the config.
    """
    return find_configs(TEACHERS).get(checkpoint.parent.name)


def check_config_file(field: str, path: str) -> None:
    """Raise a ConfigError unless a config file exists; point to the new path of one that moved."""
    if moved := _new_path(path):
        raise ConfigError(f'{field}={path!r}: this config has moved; use {moved}')
    folder = Path(path).parent
    names = [each.name for each in folder.glob('*.py')] if os.path.isdir(folder) else []
    check_file(field, path, did_you_mean(Path(path).name, names, cutoff=0.9))


def read_config(path: str | Path, field: str = 'config') -> Config:
    """Read a config file.

    Args:
        path: The path of the file.
        field: Name of the argument, for error messages.

    Raises:
        ConfigError: If the file does not exist, cannot be read, or is YAML with Python tags.
    """
    check_config_file(field, str(path))
    try:
        with mock.patch.dict(file_handlers, dict.fromkeys(('yaml', 'yml'), _PlainYaml())):
            cfg = Config.fromfile(path)
        if cfg.get('custom_imports'):
            import_modules_from_strings(**cfg.custom_imports)  # mmengine skips a lazy config's
        return cfg
    except Exception as error:
        if shared := re.search('Duplicate key is not allowed among bases.*{(.*)}', str(error)):
            raise ConfigError(
                f'{path}: two of its bases set {shared[1].replace(chr(39), "")}; keep one of them, '
                'and replace its fields whole by FIELD = dict(_delete_=True, ...)'
            ) from error
        raise ConfigError(f'{path}: {describe(error)}') from error


class _PlainYaml(YamlHandler):
    """Read YAML without Python's tags, which are programs."""

    def load_from_fileobj(self, file: IO[str], **kwargs: Any) -> Any:
        return yaml.safe_load(file)


def load_config(path: str, method: str | None = None) -> Config:
    """Read the config of a run, composed with a method if one is given.

    Args:
        path: Path of a complete config, or of a pair if ``method`` is given.
        method: The method, see :func:`compose`.

    Returns:
        The config; its ``work_dir`` defaults to ``work_dirs/CONFIG`` or ``work_dirs/PAIR_METHOD``.

    Raises:
        ConfigError: If a file is missing or invalid, if a pair has no method, or if a method is
            given for a config that already has losses.
    """
    cfg = read_config(path)
    if method is None and _is_distiller(cfg) and not cfg.model.get('losses'):
        raise ConfigError(f'config={path!r}: a pair needs a method; add --method mldr or another')
    name = Path(path).stem
    if method is not None:
        cfg = compose(cfg, method)
        name = f'{name}_{Path(method).stem}'
    cfg.setdefault('work_dir', str(Path('work_dirs', name)))
    return cfg


def compose(
    pair: Config, method: str | Mapping[str, Any], num_samples: int | None = None
) -> Config:
    """Add a method to a pair.

    Args:
        pair: A config whose model has a teacher and a student; it is not changed.
        method: The name of a file in ``configs/_base_/methods``, the path of a file with
            ``method = dict(losses=[...], ...)``, that dict itself, or ``'scratch'``, which trains
            the student alone. The other fields of a file, such as ``custom_imports``, are added to
            the config, apart from ``search_space``. ``has_head = False`` in a file takes the heads
            of both models off, and validates with a
            :class:`~mldr_kd_mm.engine.knn_loop.KNNLoop`. For a CNN student the name ``ofa`` stands
            for ``ofa_cnn``.
        num_samples: Number of training images, for a loss that stores an entry for each of them
            (CRD). None: the pair's ``num_train_images``, else the number in the method's config.

    Returns:
        The composed config.

    Raises:
        ConfigError: If the method is not found or has no losses, or if the pair lacks a teacher or
            a student, or has losses already.
    """
    check_pair(pair)
    composed = copy.deepcopy(pair)
    if method == SCRATCH:
        composed.model = student_alone(composed)
        return composed
    fields = _read_method(method, pair)
    fields.pop('search_space', None)
    addition, has_head = fields.pop('method'), fields.pop('has_head', True)
    if num_samples is None:
        num_samples = pair.get('num_train_images')
    if num_samples is not None:
        set_num_samples(addition, num_samples)
    _add(composed, fields)
    composed.merge_from_dict({'model': addition})
    if not has_head:
        _without_heads(composed)
    return composed


def _add(cfg: Config, fields: dict[str, Any]) -> None:
    """Merge a method's fields into a pair, but append its hooks and imports to the pair's."""
    if 'custom_hooks' in fields:
        fields['custom_hooks'] = [*(cfg.get('custom_hooks') or []), *fields['custom_hooks']]
    if known := (cfg.get('custom_imports') or {}).get('imports'):
        imports = fields.setdefault('custom_imports', {})
        imports['imports'] = [*_as_list(known), *_as_list(imports.get('imports', []))]
    cfg.merge_from_dict(fields)


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def needs_head(method: str | Mapping[str, Any]) -> bool:
    """Return whether teacher and student need a head with the classes of the images.

    The file of a method for models without a head has ``has_head = False``.

    Args:
        method: The method, see :func:`compose`.

    Raises:
        ConfigError: If there is no such method.
    """
    if not isinstance(method, str) or method == SCRATCH:
        return True
    fields = read_config(find_config(METHODS, method, 'method'), 'method')
    return bool(fields.get('has_head', True))


def _without_heads(cfg: Config) -> None:
    """Take the heads off the models of a pair, and validate the student's feature."""
    for part in ('teacher', 'student'):
        models = cfg.model[part] if isinstance(cfg.model[part], list) else [cfg.model[part]]
        for model in models:
            if 'backbone' in model:
                model['head'] = None
            elif str(model.get('type')).endswith('TimmClassifier'):
                model['num_classes'] = 0
    for stage, loop in (('val', 'KNNLoop'), ('test', 'KNNTestLoop')):
        if cfg.get(f'{stage}_cfg') is not None:
            cfg.merge_from_dict({f'{stage}_cfg.type': loop})


def read_search_space(method: str, pair: Config) -> dict[str, Any]:
    """Return the ``search_space`` of a method: dotted field of a composed config -> range.

    Args:
        method: The method, see :func:`compose`.
        pair: The pair, on whose student the variant of a method may depend.

    Raises:
        ConfigError: If the method is not found, or its search space is not a dict.
    """
    space = {} if method == SCRATCH else _read_method(method, pair).get('search_space', {})
    if not isinstance(space, dict):
        raise ConfigError(f'method={method!r}: search_space={space!r}: must be a dict')
    return space


def student_alone(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model of a pair's student, with the preprocessing that it has beside its teacher.

    Args:
        pair: Fields of a config whose model is a Distiller.
    """
    student = copy.deepcopy(pair['model']['student'])
    own = [part.get('data_preprocessor') for part in (pair['model'], student)]
    if any(own):
        # The Runner adds the config's data_preprocessor only to a model that has none.
        shared = own[0] or pair.get('data_preprocessor') or {}
        student['data_preprocessor'] = {**shared, **(own[1] or {})}
    return student


def check_pair(pair: Config, field: str = 'config') -> None:
    """Raise a ConfigError unless a config's model has a teacher, a student and no losses yet."""
    for part in ('teacher', 'student'):
        if part not in pair.get('model', {}):
            raise ConfigError(
                f'{field}={pair.filename!r}: its model has no {part}; a method needs a pair, see '
                'configs/pairs'
            )
    if pair.model.get('losses'):
        known = find_configs(PAIRS).get(Path(pair.filename or '').stem)
        fix = f'give its pair, {known}' if known else 'leave the method out, or give a pair'
        raise ConfigError(f'{field}={pair.filename!r}: already has losses; {fix}')


def _read_method(method: str | Mapping[str, Any], pair: Config) -> dict[str, Any]:
    """Return the fields of a method's file; those in ``method`` belong to the model."""
    if not isinstance(method, str):
        if not _has_losses(method):
            raise ConfigError(f'method={method!r}: must be a name, a path, or a dict with losses')
        return {'method': copy.deepcopy(method)}
    path = find_config(METHODS, method, 'method')
    if method in _FOR_CNN_STUDENTS and _has_cnn_student(pair):
        variant = path.with_name(f'{_FOR_CNN_STUDENTS[method]}.py')
        path = variant if variant.is_file() else path
    fields = read_config(path, 'method').to_dict()
    if not _has_losses(fields.get('method')):
        raise ConfigError(f'method={str(path)!r}: must have method = dict(losses=[...], ...)')
    return fields


def _has_losses(method: Any) -> bool:
    return isinstance(method, Mapping) and isinstance(method.get('losses'), (list, tuple))


def _has_cnn_student(pair: Config) -> bool:
    student = pair.model.student.to_dict()
    student.pop('pretrained', None)  # avoids a download
    with torch.random.fork_rng(devices=[]), log_warnings_only(), named('model.student'):
        return is_cnn(build_classifier(student))


def set_num_samples(model: Mapping[str, Any], num_samples: int) -> None:
    """Set the number of training images in each loss that stores an entry for each of them.

    Args:
        model: Config of a Distiller, or the ``method`` of a file; its losses are changed.
        num_samples: Number of training images.
    """
    for entry in model.get('losses', ()):
        loss = entry.get('loss', {})
        if loss.get('type') == 'CRDLoss':
            negatives = min(loss.get('negatives', num_samples), num_samples - 1)
            loss.update(num_samples=num_samples, negatives=negatives)


def _is_distiller(cfg: Config) -> bool:
    model = cfg.get('model') or {}
    return 'teacher' in model and 'student' in model


def _new_path(path: str) -> str | None:
    """Return the arguments that replace the path of a moved config; None if it has not moved."""
    new = re.sub(r'_tiny(?=(_64px)?\.py$)', '_tinyimagenet', path)
    new = re.sub(r'_c20(?=\.py$)', '_cifar100-20cls', new)
    new = new.replace('configs/_base_/pairs/', 'configs/pairs/')
    new = re.sub(rf'configs/({_OLD_FOLDERS})/(.+\.py)$', r'configs/pairs/\2 --method \1', new)
    exists = os.path.isfile(new.partition(' --method ')[0])
    return new if new != path and exists and not os.path.exists(path) else None
