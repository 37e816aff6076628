"""The model card of an exported student, written from the facts in its checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pprint import pformat
from typing import Any, NamedTuple

import mmpretrain
import timm
import torch
from huggingface_hub import ModelCardData
from mmengine.registry import Registry
from torch import nn

from mldr_kd_mm.apis.run_record import RunRecord, escaped, mapping, plain
from mldr_kd_mm.datasets.cifar import CIFAR_LICENCE
from mldr_kd_mm.datasets.tiny_imagenet import IMAGENET_LICENCE
from mldr_kd_mm.models.data_preprocessor import statistics
from mldr_kd_mm.registry import DATASETS, MODELS
from mldr_kd_mm.version import __version__

NOT_RECORDED = 'not recorded'

# mmpretrain's data sets do not state these in their METAINFO, as ours do.
_MMPRETRAIN_DATA = {
    'CIFAR10': {'name': 'CIFAR-10', 'licence': CIFAR_LICENCE},
    'ImageNet': {'name': 'ImageNet-1K', 'licence': IMAGENET_LICENCE},
}
# These load RGB images, mmpretrain's other data sets BGR, before any `to_rgb`.
_RGB_DATA = {'CIFAR10', 'CIFAR100', 'VerifiedCIFAR100'}
# Machine-specific paths, and fields that have their own line in the card.
_NOT_SHOWN = {'type', 'data_root', 'data_prefix', 'ann_file', 'checkpoint_path', 'pipeline'}
# Arguments of a TimmClassifier that are not timm's.
_NOT_TIMMS = {'type', 'model_name', 'loss', 'with_cp', 'data_preprocessor'}


class Student(NamedTuple):
    """A student, rebuilt from the config of its run.

    Attributes:
        model: The classifier with its weights, in evaluation mode.
        config: Its config, without the fields that only training uses.
        input_size: (3, H, W) of its images.
        num_classes: Number of logits.
    """

    model: nn.Module
    config: dict[str, Any]
    input_size: tuple[int, ...]
    num_classes: int


def registered_modules(registry: Registry) -> dict[str, type]:
    """Return the modules of a registry and its parents by name.

    Unlike ``Registry.get`` this imports nothing, so the names may come from an untrusted file.

    Args:
        registry: The registry.
    """
    registry.import_from_location()
    inherited = registered_modules(registry.parent) if registry.parent else {}
    return inherited | registry.module_dict


def input_metadata(record: RunRecord, run: Mapping[str, Any], student: Student) -> dict[str, str]:
    """Describe the student's input and output as JSON texts, for the metadata of exported graphs.

    Args:
        record: Facts of the run.
        run: The run's config.
        student: The student.

    Returns:
        Name -> JSON. Mean and standard deviation are in pixel values, 0 to 255.
    """
    mean, std = (values.flatten().tolist() for values in statistics(_preprocessor(student)))
    facts = dict(
        input_size=student.input_size,
        channel_order=_channel_order(run, student),
        mean=mean,
        std=std,
        pipeline=_dicts(_dataset(run, 'val_dataloader').get('pipeline')),
        output='logits',
        classes=list(record.classes) or None,
    )
    return {name: json.dumps(value, default=str) for name, value in facts.items()}


def model_card(
    record: RunRecord,
    run: Mapping[str, Any],
    student: Student | None,
    files: Mapping[str, tuple[Path, str]],
) -> str:
    """Write the model card of an exported student.

    Args:
        record: Facts of the run.
        run: The run's config; empty if unknown.
        student: The student, or None if it cannot be built.
        files: File name -> its current path and a description. The first file has the weights.

    Returns:
        Markdown with the front matter of the Hugging Face hub.
    """
    model = mapping(run, 'model')
    sections = {
        'Student': _student_facts(record, run, student),
        'Training': _training_facts(record, run, model),
        'Losses': _losses(model),
        'Accuracy': _accuracy(record, run),
        'Data': _data_facts(run),
        'Files': _file_facts(files),
    }
    lines = [_front_matter(mapping(model, 'student')), f'# {_title(run, model)}', '']
    for title, items in sections.items():
        lines += [f'## {title}', '', *(f'- {item}' for item in items), '']
    if student:
        lines += ['## Load the student', '', *_code(student, files)]
    return '\n'.join(lines).rstrip() + '\n'


def _title(run: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    student, teacher = (_model_name(mapping(model, side)) for side in ('student', 'teacher'))
    data = _data_info(_dataset(run, 'train_dataloader'))['name']
    return escaped(f'{student} distilled from {teacher} on {data}')


def _front_matter(student: Mapping[str, Any]) -> str:
    data = ModelCardData(
        license='other',
        library_name={'TimmClassifier': 'timm', 'ImageClassifier': 'mmpretrain'}.get(
            _type(student)
        ),
        pipeline_tag='image-classification',
        tags=['image-classification', 'knowledge-distillation'],
    )
    return f'---\n{data.to_yaml()}\n---\n'


def _student_facts(
    record: RunRecord, run: Mapping[str, Any], student: Student | None
) -> Iterator[str]:
    yield f'Model: {_model(mapping(run, "model", "student"))}'
    averaged = 'exponential moving average (EMA)' if record.has_ema else 'last step, no EMA'
    yield f'Weights: {averaged}'
    if student is None:
        yield f'Parameters, input, normalisation: {NOT_RECORDED}'
        return
    metadata = input_metadata(record, run, student)
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    channels, height, width = student.input_size
    order = json.loads(metadata['channel_order']) or f'channel order {NOT_RECORDED}'
    yield f'Parameters: {parameters:,}'
    yield f'Input: {channels} x {height} x {width}, {order}'
    yield f'Preprocessing: {_listed(_pipeline(run))}'
    yield (
        f'Normalisation: (pixel - mean) / std of pixels from 0 to 255, mean {metadata["mean"]}, '
        f'std {metadata["std"]}'
    )
    names = escaped(', '.join(record.classes)) if record.classes else f'names {NOT_RECORDED}'
    yield f'Output: logits (before softmax) of {student.num_classes} classes: {names}'


def _training_facts(
    record: RunRecord, run: Mapping[str, Any], model: Mapping[str, Any]
) -> Iterator[str]:
    optimizer, train_cfg = mapping(run, 'optim_wrapper'), mapping(run, 'train_cfg')
    configured = train_cfg.get('max_epochs') or train_cfg.get('max_iters')
    batch_size = record.batch_size or mapping(run, 'train_dataloader').get('batch_size')
    default = 'none' if run else NOT_RECORDED
    yield f'Teacher: {_model(mapping(model, "teacher"))}'
    yield f"Teacher's weights: {_teacher_weights(model)}"
    yield f'Run: {_known(record.experiment)}'
    yield (
        f'Trained for: {_known(record.epoch)} epochs, {_known(record.iteration)} iterations '
        f'(configured: {_known(configured)})'
    )
    yield f'Batch size: {_known(batch_size)} per process'
    yield f'Processes: {_known(record.processes)}'
    yield f'Optimizer: {_call(mapping(optimizer, "optimizer"))}'
    yield f'Optimizer wrapper: {_call({**optimizer, "optimizer": None}, default="OptimWrapper")}'
    schedule = map(_call, _dicts(run.get('param_scheduler')))
    yield f'Learning-rate schedule: {_listed(schedule, "constant" if run else NOT_RECORDED)}'
    yield f'Training pipeline: {_listed(_pipeline(run, "train_dataloader"))}'
    yield f'Batch augmentation: {_listed(map(_call, _augments(run)), default)}'
    yield f'Seed: {_known(record.seed)}'
    commit = NOT_RECORDED if record.commit is None else f'`{record.commit}`'
    yield f'Git commit of the working directory: {commit}'
    yield f'Trained with: mmengine {_known(record.mmengine)}; torch {NOT_RECORDED}'
    yield (
        f'Exported with: mldr-kd {__version__}, torch {torch.__version__}, timm '
        f'{timm.__version__}, mmpretrain {mmpretrain.__version__}'
    )
    yield f'Saved: {_known(record.time)}'


def _losses(model: Mapping[str, Any]) -> Iterator[str]:
    student = mapping(model, 'student')
    own = mapping(student, 'loss') or mapping(student, 'head', 'loss')
    unless_given = "the classifier's default" if student else NOT_RECORDED
    yield f"Student's own loss: {_call(own) if own else unless_given}"
    for loss in _dicts(model.get('losses')):
        names = (escaped(_listed(_as_list(loss.get(side)))) for side in ('student', 'teacher'))
        between = " and the teacher's ".join(names)
        yield (
            f'`{plain(loss.get("name", "kd"))}`, weight {plain(loss.get("weight", 1.0))}: '
            f"{_call(mapping(loss, 'loss'))} between the student's {between}"
        )


def _accuracy(record: RunRecord, run: Mapping[str, Any]) -> Iterator[str]:
    dataset = _dataset(run, 'val_dataloader')
    yield f'Validated on: {_call(dataset) if dataset else NOT_RECORDED}'
    if not record.metrics:
        yield f'Accuracy: {NOT_RECORDED}'
        return
    for name, values in record.metrics.items():
        best = f', best of {len(values)} validations {max(values):.2f}'
        yield f'{escaped(name)}: last {values[-1]:.2f}{best if "accuracy" in name else ""}'
    if record.validated_epoch is None:
        yield f'Epoch of the last validation: {NOT_RECORDED}'
    elif record.validated_epoch == record.epoch:
        yield 'The last validation measured these weights'
    else:
        yield (
            f'The last validation was after epoch {_known(record.validated_epoch)}; these weights, '
            f'of epoch {_known(record.epoch)}, were saved before their validation'
        )
    if record.best_checkpoint:
        yield f"Run's best checkpoint: `{record.best_checkpoint}`, {_known(record.best_score)}"


def _data_info(dataset: Mapping[str, Any]) -> dict[str, str]:
    """Return a data set's name and licence."""
    kind = _type(dataset)
    known = getattr(registered_modules(DATASETS).get(kind), 'METAINFO', {})
    unknown = {
        'name': plain(kind) or f'data {NOT_RECORDED}',
        'licence': 'unknown; ask the owner of the data',
    }
    return {**unknown, **known, **_MMPRETRAIN_DATA.get(kind, {})}


def _data_facts(run: Mapping[str, Any]) -> Iterator[str]:
    dataset = _dataset(run, 'train_dataloader')
    if not dataset:
        yield f'Data set: {NOT_RECORDED}'
        return
    info = _data_info(dataset)
    yield f'Data set: {escaped(info["name"])}'
    yield f'Trained on: {_call(dataset)}'
    yield f'Licence of the data: {info["licence"]}'
    yield f"Licence of the teacher's weights: {NOT_RECORDED}"


def _file_facts(files: Mapping[str, tuple[Path, str]]) -> Iterator[str]:
    for name, (path, description) in files.items():
        yield f'`{name}`: {description}; sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`'


def _code(student: Student, files: Iterable[str]) -> list[str]:
    """Return Python that loads each file from the card's folder."""
    weights, *graphs = files
    load = _timm_lines if _type(student.config) == 'TimmClassifier' else _mmpretrain_lines
    blocks = [load(student, weights)]
    for name in graphs:
        lines = _onnx_lines if name.endswith('.onnx') else _torch_export_lines
        blocks.append(lines(student, name))
    shapes = 'The input is normalised images, float32 (N, 3, H, W); the output logits (N, classes).'
    fenced = (['```python', *block, '```', ''] for block in blocks)
    return [shapes, '', *(line for block in fenced for line in block)]


def _timm_lines(student: Student, weights: str) -> list[str]:
    # Some models of timm accept any argument, and a name that is none would be code in the card.
    given = {
        name: value
        for name, value in student.config.items()
        if name.isidentifier() and name not in _NOT_TIMMS and value is not None
    }
    return [
        'import timm',
        '',
        'model = timm.create_model(',
        f'    {student.config["model_name"]!r},',
        *(f'    {name}={value!r},' for name, value in given.items()),
        f'    checkpoint_path={weights!r},',
        ').eval()',
    ]


def _mmpretrain_lines(student: Student, weights: str) -> list[str]:
    preprocessor = _preprocessor(student)
    mean, std = (values.flatten().tolist() for values in statistics(preprocessor))
    normalise = dict(mean=mean, std=std, to_rgb=preprocessor.to_rgb)
    config = {**student.config, 'data_preprocessor': normalise}
    is_safetensors = weights.endswith('.safetensors')
    ours = [name for name in sorted(_types(config)) if name in MODELS.module_dict]
    return [
        *([f'import mldr_kd_mm  # registers {", ".join(ours)}'] if ours else []),
        *([] if is_safetensors else ['from mmengine.runner import load_checkpoint']),
        'from mmpretrain.models import build_classifier',
        *(['from safetensors.torch import load_file'] if is_safetensors else []),
        '',
        *f'config = {pformat(config, sort_dicts=False)}'.splitlines(),
        'model = build_classifier(config).eval()',
        f'model.load_state_dict(load_file({weights!r}))'
        if is_safetensors
        else f"load_checkpoint(model, {weights!r}, map_location='cpu', strict=True)",
    ]


def _onnx_lines(student: Student, name: str) -> list[str]:
    return [
        'import numpy',
        'import onnxruntime',
        '',
        f'session = onnxruntime.InferenceSession({name!r})',
        f"images = numpy.zeros({(1, *student.input_size)}, 'float32')",
        "logits = session.run(['logits'], {'images': images})[0]",
    ]


def _torch_export_lines(student: Student, name: str) -> list[str]:
    return [
        'import torch',
        '',
        f'model = torch.export.load({name!r}).module()',
        f'logits = model(torch.zeros{(1, *student.input_size)})',
    ]


def _preprocessor(student: Student) -> nn.Module:
    return student.model.data_preprocessor


def _channel_order(run: Mapping[str, Any], student: Student) -> str | None:
    """Return RGB or BGR, or None if the config does not tell."""
    dataset = _dataset(run, 'val_dataloader') or _dataset(run, 'train_dataloader')
    steps = map(_type, _dicts(dataset.get('pipeline')))
    if _type(dataset) in _RGB_DATA:
        order = 'RGB'
    elif 'LoadImageFromFile' in steps:
        order = 'BGR'
    else:
        return None
    return order[::-1] if _preprocessor(student).to_rgb else order


def _dataset(run: Mapping[str, Any], loader: str) -> Mapping[str, Any]:
    dataset = mapping(run, loader, 'dataset')
    while mapping(dataset, 'dataset'):  # a wrapper, such as RepeatDataset
        dataset = mapping(dataset, 'dataset')
    return dataset


def _pipeline(run: Mapping[str, Any], loader: str = 'val_dataloader') -> list[str]:
    return [_call(step) for step in _dicts(_dataset(run, loader).get('pipeline'))]


def _augments(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the batch augmentations, such as mixup."""
    student = mapping(run, 'model', 'student')
    for holder in (mapping(student, 'train_cfg'), mapping(student, 'data_preprocessor')):
        augments = holder.get('augments') or mapping(holder, 'batch_augments').get('augments')
        if augments:
            return _dicts(augments)
    return []


def _teacher_weights(model: Mapping[str, Any]) -> str:
    path = model.get('teacher_checkpoint')
    if path:
        return f'`{plain(str(path).rpartition("/")[2])}`'
    teacher = mapping(model, 'teacher')
    if teacher.get('pretrained'):
        return 'pretrained, from timm'
    return 'initialised by its config' if teacher else NOT_RECORDED


def _model(config: Mapping[str, Any]) -> str:
    """Describe a classifier in one line."""
    backbone = mapping(config, 'backbone') or config
    left_out = {'data_preprocessor', 'init_cfg', 'loss', 'train_cfg', 'pretrained'}
    return _call({k: v for k, v in backbone.items() if k not in left_out})


def _model_name(config: Mapping[str, Any]) -> str:
    backbone = mapping(config, 'backbone') or config
    return plain(config.get('model_name') or _type(backbone) or f'a model ({NOT_RECORDED})')


def _types(config: Any) -> set[str]:
    """Return every type that a config names, without its scope."""
    if isinstance(config, Mapping):
        return {_type(config)}.union(*map(_types, config.values()))
    return set().union(*map(_types, config)) if isinstance(config, (list, tuple)) else set()


def _type(config: Any) -> str:
    """Return a config's type without its scope."""
    kind = config.get('type', '') if isinstance(config, Mapping) else ''
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def _call(config: Mapping[str, Any], default: str = NOT_RECORDED) -> str:
    """Format a config as a call, ``SGD(lr=0.05, momentum=0.9)``, without paths and None values."""
    kind = _type(config) or default
    if not config:
        return escaped(kind)
    given = {k: v for k, v in config.items() if k not in _NOT_SHOWN and v is not None}
    arguments = ', '.join(f'{key}={value!r}' for key, value in given.items())
    return f'`{plain(f"{kind}({arguments})" if arguments else kind)}`'


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    """Return the configs of a list, or a single config as a list."""
    return [config for config in _as_list(value) if isinstance(config, Mapping)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _listed(items: Iterable[Any], otherwise: str = NOT_RECORDED) -> str:
    return ', '.join(map(str, items)) or otherwise


def _known(value: Any) -> str:
    return NOT_RECORDED if value is None else escaped(value)
