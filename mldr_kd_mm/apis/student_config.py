"""Configs from which timm and mmpretrain build an exported student by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from pprint import pformat
from typing import Any

from mmengine.registry import Registry
from timm.models import save_for_hf

from mldr_kd_mm.apis.run_record import type_name, validation_part
from mldr_kd_mm.apis.student import RebuiltStudent
from mldr_kd_mm.registry import MODELS, TRANSFORMS
from mldr_kd_mm.utils.errors import ConfigError, named
from mldr_kd_mm.utils.stored_config import check_types

# What timm has to know about the network besides its preprocessing. The rest describes weights.
_OF_THE_NETWORK = ('architecture', 'first_conv', 'classifier', 'fixed_input_size')
_ALWAYS_IMPORTED = ('mmcv', 'mmengine', 'mmpretrain', 'torch', 'torchvision')


def registered_modules(registry: Registry) -> dict[str, type]:
    """Return the modules of a registry and its parents by name.

    Unlike ``Registry.get`` this imports nothing, so the names may come from an untrusted file.

    Args:
        registry: The registry.
    """
    registry.import_from_location()
    inherited = registered_modules(registry.parent) if registry.parent else {}
    return inherited | registry.module_dict


def write_timm_folder(folder: Path, student: RebuiltStudent, classes: tuple[str, ...]) -> None:
    """Write ``model.safetensors`` and ``config.json``, from which timm builds the student.

    Args:
        folder: An existing folder.
        student: A student that timm builds.
        classes: Names of the classes; empty if unknown.

    Raises:
        ConfigError: An argument of the model cannot be stored as JSON.
    """
    model = student.model.model
    known = {name: model.pretrained_cfg.get(name) for name in _OF_THE_NETWORK}
    preprocessing = student.preprocessing.timm_arguments()
    model.pretrained_cfg = {**known, **preprocessing, 'num_classes': student.num_classes}
    arguments = {k: v for k, v in student.timm_arguments.items() if k != 'num_classes'}
    with named('model.student'):
        json.dumps(arguments)
        save_for_hf(
            model,
            str(folder),
            model_config=dict(label_names=list(classes)) if classes else None,
            model_args=arguments,
            safe_serialization=True,
        )


def write_config(path: Path, run: Mapping[str, Any], student: RebuiltStudent) -> None:
    """Write a config from which mmpretrain's ``get_model`` and inferencers build the student.

    Args:
        path: The file.
        run: The run's config.
        student: The student.
    """
    preprocessing = student.preprocessing
    # The inferencers read files as BGR; the run may have read arrays of RGB.
    to_rgb = preprocessing.channel_order != 'BGR'
    statistics = dict(mean=preprocessing.mean, std=preprocessing.std, to_rgb=to_rgb)
    model = {**student.config, 'data_preprocessor': statistics}
    pipeline = None
    with suppress(ConfigError):  # a pipeline with a step that is not registered is left out
        stored = validation_part(run).get('pipeline')
        pipeline = check_types(stored, 'val_dataloader.dataset.pipeline')
    dataset = dict(type='CustomDataset', pipeline=pipeline)
    modules = sorted({*_modules(model, MODELS), *_modules(pipeline, TRANSFORMS)})
    # pformat writes literals only, whatever an untrusted config contains.
    fields = dict(
        custom_imports=dict(imports=modules) if modules else None,
        model=model,
        test_dataloader=dict(dataset=dataset) if pipeline else None,
    )
    texts = [
        f'{name} = {pformat(value, sort_dicts=False)}' for name, value in fields.items() if value
    ]
    path.write_text('\n'.join(['# For get_model and the inferencers of mmpretrain.', *texts, '']))


def _modules(config: Any, registry: Registry) -> Iterator[str]:
    """Yield the modules, outside of OpenMMLab, that register what a config names."""
    known = registered_modules(registry)
    for name in _types(config) & set(known):
        module = known[name].__module__
        package = module.partition('.')[0]
        if package not in _ALWAYS_IMPORTED:
            yield package if package == 'mldr_kd_mm' else module


def _types(config: Any) -> set[str]:
    """Return every type that a config names, without its scope."""
    if isinstance(config, Mapping):
        return {type_name(config)}.union(*map(_types, config.values()))
    return set().union(*map(_types, config)) if isinstance(config, (list, tuple)) else set()
