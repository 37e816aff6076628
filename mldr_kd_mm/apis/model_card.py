"""The model card of an exported student: what its checkpoint says, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from pprint import pformat
from typing import Any, NamedTuple

import mmpretrain
import timm
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mldr_kd_mm.models.data_preprocessor import statistics
from mldr_kd_mm.registry import MODELS
from mldr_kd_mm.version import __version__

NOT_RECORDED = 'not recorded'

_NON_COMMERCIAL = (
    "ImageNet's terms of access: non-commercial research and education only; the images belong to "
    'their owners'
)
_NO_LICENCE = (
    'its authors state no licence; they publish it for research and ask that '
    'their report be cited (Krizhevsky, 2009: Learning Multiple Layers of Features from Tiny '
    'Images)'
)
# Type of data set -> its name, and the licence of its images.
_DATA = {
    'CIFAR10': ('CIFAR-10', _NO_LICENCE),
    'CIFAR100': ('CIFAR-100', _NO_LICENCE),
    'VerifiedCIFAR100': ('CIFAR-100', _NO_LICENCE),
    'TinyImageNet': ('Tiny-ImageNet', f'a part of ImageNet; {_NON_COMMERCIAL}'),
    'ImageNet': ('ImageNet-1K', _NON_COMMERCIAL),
}
# The order of the channels as mmpretrain's data sets have them before any `to_rgb`.
_RGB_DATA = {'CIFAR10', 'CIFAR100', 'VerifiedCIFAR100'}
# Paths of the machine of the run, and what the card has in a line of its own.
_NOT_SHOWN = {'type', 'data_root', 'data_prefix', 'ann_file', 'checkpoint_path', 'pipeline'}
# Arguments of a TimmClassifier that are not timm's.
_NOT_TIMMS = {'type', 'model_name', 'loss', 'with_cp', 'data_preprocessor'}


class Student(NamedTuple):
    """A student, rebuilt from the config of its run.

    Attributes:
        model: The classifier with its weights, in evaluation mode.
        config: Its config, without what only training needs.
        input_size: (3, H, W) of its images.
        num_classes: The number of its logits.
    """

    model: nn.Module
    config: dict[str, Any]
    input_size: tuple[int, ...]
    num_classes: int


def mapping(content: Any, *keys: str) -> Mapping[str, Any]:
    """The dict under these keys of nested dicts, empty where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def image_texts(content: Any, run: Mapping[str, Any], student: Student) -> dict[str, str]:
    """What an image must be for the student, and what comes out, as texts of JSON.

    Args:
        content: The checkpoint.
        run: The config of the run.
        student: The student.

    Returns:
        Name -> text; the mean and the standard deviation are of pixels of 0 to 255.
    """
    mean, std = (values.flatten().tolist() for values in statistics(_preprocessor(student)))
    texts = dict(
        input_size=student.input_size,
        channel_order=_channel_order(run, student),
        mean=mean,
        std=std,
        pipeline=_dicts(_dataset(run, 'val_dataloader').get('pipeline')),
        output='logits',
        classes=_classes(content) or None,
    )
    return {name: json.dumps(value, default=str) for name, value in texts.items()}


def model_card(
    content: Any,
    run: Mapping[str, Any],
    student: Student | None,
    files: Mapping[str, tuple[Path, str]],
) -> str:
    """Write the card.

    Args:
        content: The checkpoint.
        run: The config of the run, empty if there is none.
        student: The student, or None if it could not be built.
        files: Name -> where the file is now, and what it is, in words. The first one is the
            weights.

    Returns:
        Markdown, with the front matter of the Hugging Face hub.
    """
    model = mapping(run, 'model')
    weights_file = next(iter(files))
    sections = {
        'The student': _student_facts(content, run, student, weights_file),
        'How it was trained': _training_facts(content, run, model),
        'Losses': _losses(model),
        'Accuracy': _accuracy(content, run),
        'Data': _data_facts(run),
        'Files': _file_facts(files),
    }
    lines = [*_front_matter(mapping(model, 'student')), f'# {_title(run, model)}', '']
    for title, items in sections.items():
        lines += [f'## {title}', '', *(f'- {item}' for item in items), '']
    if student:
        lines += ['## How to load it', '', *_code(student, files)]
    return '\n'.join(lines).rstrip() + '\n'


def _title(run: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    student, teacher = (_model_name(mapping(model, side)) for side in ('student', 'teacher'))
    return f'{student} distilled from {teacher} on {_data(_dataset(run, "train_dataloader"))[0]}'


def _front_matter(student: Mapping[str, Any]) -> list[str]:
    library = {'TimmClassifier': 'timm', 'ImageClassifier': 'mmpretrain'}.get(_type(student))
    return [
        '---',
        'license: other',
        *([f'library_name: {library}'] if library else []),
        'pipeline_tag: image-classification',
        'tags:',
        '- image-classification',
        '- knowledge-distillation',
        '---',
        '',
    ]


def _student_facts(
    content: Any, run: Mapping[str, Any], student: Student | None, weights_file: str
) -> Iterator[str]:
    yield f'Model: {_model(mapping(run, "model", "student"))}'
    averaged = 'ema_state_dict' in content
    which = 'the average over training (EMA)' if averaged else 'those of the last step, no average'
    yield f'Weights: {which}'
    if student is None:
        yield f'Parameters, images, normalisation: {NOT_RECORDED}'
        return
    texts = image_texts(content, run, student)
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    channels, height, width = student.input_size
    yield f'Parameters: {parameters:,}'
    yield f'Images: {channels} x {height} x {width}, channels in the order {_order(texts)}'
    yield (
        f'Normalisation: (pixel - mean) / std on pixels of 0 to 255, mean {texts["mean"]}, '
        f'std {texts["std"]}'
    )
    yield f'Before that: {_listed(_pipeline(run))}'
    classes = _classes(content)
    names = ', '.join(map(_plain, classes)) if classes else f'names {NOT_RECORDED}'
    yield f'Output: logits of {student.num_classes} classes, before the softmax: {names}'


def _training_facts(
    content: Any, run: Mapping[str, Any], model: Mapping[str, Any]
) -> Iterator[str]:
    meta, steps = mapping(content, 'meta'), mapping(content, 'meta', 'steps')
    optimizer = mapping(run, 'optim_wrapper')
    of = mapping(run, 'train_cfg').get('max_epochs') or mapping(run, 'train_cfg').get('max_iters')
    yield f'Teacher: {_model(mapping(model, "teacher"))}'
    yield f"Teacher's weights: {_teacher_weights(model)}"
    yield f'Run: {_or_not(meta.get("experiment_name"))}'
    yield (
        f'Trained for: {_or_not(meta.get("epoch"))} epochs, {_or_not(meta.get("iter"))} iterations '
        f'(the config asks for {_or_not(of)})'
    )
    batch_size = steps.get('batch_size') or mapping(run, 'train_dataloader').get('batch_size')
    yield f'Images in a batch: {_or_not(batch_size)}, in each process'
    yield f'Processes: {_or_not(steps.get("processes"))}'
    yield f'Optimizer: {_call(mapping(optimizer, "optimizer"))}'
    yield f'Optimizer wrapper: {_call({**optimizer, "optimizer": None}, default="OptimWrapper")}'
    schedule = map(_call, _dicts(run.get('param_scheduler')))
    yield f'Learning rate: {_listed(schedule, "constant" if run else NOT_RECORDED)}'
    yield f'Images in training: {_listed(_pipeline(run, "train_dataloader"))}'
    augments = map(_call, _augments(run))
    yield f'Mixed in a batch: {_listed(augments, "no" if run else NOT_RECORDED)}'
    yield f'Seed: {_or_not(meta.get("seed"))}'
    version, commit = _mmengine(meta)
    yield f'Commit of the folder it was trained in: {commit}'
    yield f'Trained with: mmengine {version}; torch {NOT_RECORDED}'
    yield (
        f'Exported with: mldr-kd {__version__}, torch {torch.__version__}, timm '
        f'{timm.__version__}, mmpretrain {mmpretrain.__version__}'
    )
    yield f'Finished: {_or_not(meta.get("time"))}'


def _losses(model: Mapping[str, Any]) -> Iterator[str]:
    student = mapping(model, 'student')
    own = mapping(student, 'loss') or mapping(student, 'head', 'loss')
    unless_given = "the classifier's default" if student else NOT_RECORDED
    yield f"The student's own: {_call(own) if own else unless_given}"
    for loss in _dicts(model.get('losses')):
        names = (_listed(_as_list(loss.get(side))) for side in ('student', 'teacher'))
        between = " against the teacher's ".join(names)
        yield (
            f'`{_plain(loss.get("name", "kd"))}`, weight {_plain(loss.get("weight", 1.0))}: '
            f'{_call(mapping(loss, "loss"))} of {between}'
        )


def _accuracy(content: Any, run: Mapping[str, Any]) -> Iterator[str]:
    info = mapping(content, 'message_hub', 'runtime_info')
    epoch, measured = mapping(content, 'meta').get('epoch'), info.get('last_validated_epoch')
    dataset = _dataset(run, 'val_dataloader')
    yield f'Measured on: {_call(dataset)}' if dataset else f'Measured on: {NOT_RECORDED}'
    history = list(_metrics(content))
    if not history:
        yield f'Accuracy: {NOT_RECORDED}'
        return
    for name, values in history:
        highest = f', highest of {len(values)} validations {max(values):.2f}'
        yield f'{_plain(name)}: last {values[-1]:.2f}{highest if "accuracy" in name else ""}'
    if measured is None:
        yield f'Epoch of the last validation: {NOT_RECORDED}'
    elif measured == epoch:
        yield 'The last validation was of these weights'
    else:
        yield (
            f'The last validation was after epoch {_plain(measured)}; these weights, of epoch '
            f'{_or_not(epoch)}, were saved before theirs'
        )
    if info.get('best_ckpt'):
        best = _plain(Path(str(info['best_ckpt'])).name)
        yield f'Best checkpoint of the run: `{best}`, {_or_not(info.get("best_score"))}'


def _metrics(content: Any) -> Iterator[tuple[str, list[float]]]:
    """Name -> one value for each validation."""
    scalars = mapping(content, 'message_hub', 'log_scalars')
    for name, buffer in scalars.items():
        metric = str(name).removeprefix('val/')
        is_metric = metric != name and metric not in ('data_time', 'time')
        if is_metric and isinstance(buffer, HistoryBuffer) and len(buffer.data[0]):
            yield metric, buffer.data[0].tolist()


def _data(dataset: Mapping[str, Any]) -> tuple[str, str]:
    """A data set's name, and the licence of its images."""
    unknown = _plain(_type(dataset) or f'data {NOT_RECORDED}'), 'unknown: ask its owner'
    return _DATA.get(_type(dataset), unknown)


def _data_facts(run: Mapping[str, Any]) -> Iterator[str]:
    dataset = _dataset(run, 'train_dataloader')
    if not dataset:
        yield f'Data set: {NOT_RECORDED}'
        return
    name, licence = _data(dataset)
    yield f'Data set: {name}'
    yield f'Trained on: {_call(dataset)}'
    yield f'Licence of the data: {licence}'
    yield f"Licence of the teacher's weights: {NOT_RECORDED}"


def _file_facts(files: Mapping[str, tuple[Path, str]]) -> Iterator[str]:
    for name, (path, words) in files.items():
        yield f'`{name}`: {words}; sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`'


def _code(student: Student, files: Iterable[str]) -> list[str]:
    """Lines of Python that load each file from the folder of the card."""
    weights, *graphs = files
    load = _timm_lines if _type(student.config) == 'TimmClassifier' else _mmpretrain_lines
    blocks = [load(student, weights)]
    for name in graphs:
        lines = _onnx_lines if name.endswith('.onnx') else _torch_export_lines
        blocks.append(lines(student, name))
    images = 'Images go in normalised, float32 (N, 3, H, W); logits (N, classes) come out.'
    fenced = (['```python', *block, '```', ''] for block in blocks)
    return [images, '', *(line for block in fenced for line in block)]


def _timm_lines(student: Student, weights: str) -> list[str]:
    given = {k: v for k, v in student.config.items() if k not in _NOT_TIMMS and v is not None}
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
        *([f'import mldr_kd_mm  # has {", ".join(ours)}'] if ours else []),
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
    """RGB or BGR where the config tells."""
    dataset = _dataset(run, 'val_dataloader') or _dataset(run, 'train_dataloader')
    steps = map(_type, _dicts(dataset.get('pipeline')))
    if _type(dataset) in _RGB_DATA:
        order = 'RGB'
    elif 'LoadImageFromFile' in steps:
        order = 'BGR'
    else:
        return None
    return order[::-1] if _preprocessor(student).to_rgb else order


def _order(texts: Mapping[str, str]) -> str:
    return json.loads(texts['channel_order']) or f'of the data set ({NOT_RECORDED})'


def _dataset(run: Mapping[str, Any], loader: str) -> Mapping[str, Any]:
    dataset = mapping(run, loader, 'dataset')
    while mapping(dataset, 'dataset'):  # wrappers, such as RepeatDataset
        dataset = mapping(dataset, 'dataset')
    return dataset


def _pipeline(run: Mapping[str, Any], loader: str = 'val_dataloader') -> list[str]:
    return [_call(step) for step in _dicts(_dataset(run, loader).get('pipeline'))]


def _augments(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Mixup and the like."""
    student = mapping(run, 'model', 'student')
    for holder in (mapping(student, 'train_cfg'), mapping(student, 'data_preprocessor')):
        augments = holder.get('augments') or mapping(holder, 'batch_augments').get('augments')
        if augments:
            return _dicts(augments)
    return []


def _classes(content: Any) -> list[str]:
    classes = mapping(content, 'meta', 'dataset_meta').get('classes')
    return list(classes) if isinstance(classes, (list, tuple)) else []


def _mmengine(meta: Mapping[str, Any]) -> tuple[str, str]:
    """The version, and the commit that mmengine writes behind it."""
    recorded = _plain(meta.get('mmengine_version', ''))
    version, commit = re.fullmatch('(.*?)([0-9a-f]{40}|unknown|)', recorded).groups()
    known = commit not in ('', 'unknown')
    return version or NOT_RECORDED, f'`{commit}`' if known else NOT_RECORDED


def _teacher_weights(model: Mapping[str, Any]) -> str:
    path = model.get('teacher_checkpoint')
    if path:
        return f'`{_plain(str(path).rpartition("/")[2])}`'
    teacher = mapping(model, 'teacher')
    if teacher.get('pretrained'):
        return "timm's pretrained ones"
    return 'as its config initialises it' if teacher else NOT_RECORDED


def _model(config: Mapping[str, Any]) -> str:
    """A classifier in a line."""
    backbone = mapping(config, 'backbone') or config
    left_out = {'data_preprocessor', 'init_cfg', 'loss', 'train_cfg', 'pretrained'}
    return _call({k: v for k, v in backbone.items() if k not in left_out})


def _model_name(config: Mapping[str, Any]) -> str:
    backbone = mapping(config, 'backbone') or config
    return _plain(config.get('model_name') or _type(backbone) or f'a model ({NOT_RECORDED})')


def _types(config: Any) -> set[str]:
    """All types that a config names, without their scopes."""
    if isinstance(config, Mapping):
        return {_type(config)}.union(*map(_types, config.values()))
    return set().union(*map(_types, config)) if isinstance(config, (list, tuple)) else set()


def _type(config: Any) -> str:
    """A config's type without its scope."""
    kind = config.get('type', '') if isinstance(config, Mapping) else ''
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


def _call(config: Mapping[str, Any], default: str = NOT_RECORDED) -> str:
    """A config as a call: ``SGD(lr=0.05, momentum=0.9)``, without paths and what is None."""
    kind = _type(config) or default
    if not config:
        return kind
    given = {k: v for k, v in config.items() if k not in _NOT_SHOWN and v is not None}
    arguments = ', '.join(f'{key}={value!r}' for key, value in given.items())
    return f'`{_plain(f"{kind}({arguments})" if arguments else kind)}`'


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    """The configs of a list, or the one config."""
    return [config for config in _as_list(value) if isinstance(config, Mapping)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _listed(items: Iterable[Any], otherwise: str = NOT_RECORDED) -> str:
    return ', '.join(map(str, items)) or otherwise


def _or_not(value: Any) -> str:
    return NOT_RECORDED if value is None else _plain(value)


def _plain(value: Any) -> str:
    """A checkpoint's text, which may not end a line or a code span."""
    return ''.join(filter(str.isprintable, str(value))).replace('`', "'")
