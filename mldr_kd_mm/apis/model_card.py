"""The model card of an exported student, written from the facts in its checkpoint."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmpretrain
import timm
import torch
from huggingface_hub import ModelCardData

from mldr_kd_mm.apis.quantize import Quantized
from mldr_kd_mm.apis.run_record import (
    RunRecord,
    dataset_of,
    dicts,
    escaped,
    mapping,
    metric_name,
    plain,
    type_name,
    validation_part,
)
from mldr_kd_mm.apis.student import RebuiltStudent
from mldr_kd_mm.apis.student_config import registered_modules
from mldr_kd_mm.datasets.cifar import CIFAR_LICENCE
from mldr_kd_mm.datasets.tiny_imagenet import IMAGENET_LICENCE
from mldr_kd_mm.models.backbones import hugging_face
from mldr_kd_mm.models.data_preprocessor import weights_file
from mldr_kd_mm.registry import DATASETS
from mldr_kd_mm.utils.errors import is_number
from mldr_kd_mm.utils.logging import plural
from mldr_kd_mm.utils.nested import as_list
from mldr_kd_mm.version import __version__

NOT_RECORDED = 'not recorded'

# mmpretrain's data sets do not state these in their METAINFO, as ours do.
_MMPRETRAIN_DATA = {
    'CIFAR10': {'name': 'CIFAR-10', 'licence': CIFAR_LICENCE},
    'ImageNet': {'name': 'ImageNet-1K', 'licence': IMAGENET_LICENCE},
}
# Machine-specific paths, and fields that have their own line in the card.
_NOT_SHOWN = {
    'type',
    'data_root',
    'data_prefix',
    'ann_file',
    'checkpoint_path',
    'metainfo',
    'pipeline',
}


def model_card(
    record: RunRecord,
    run: Mapping[str, Any],
    student: RebuiltStudent | None,
    files: Mapping[str, tuple[Path, str]],
    is_folder: bool = False,
    is_backbone: bool = False,
    quantized: Quantized | None = None,
    onnx_preprocessing: bool = False,
) -> str:
    """Write the model card of an exported student.

    Args:
        record: Facts of the run.
        run: The run's config; empty if unknown.
        student: The student, or None if it cannot be built.
        files: File name -> its current path and a description.
        is_folder: Whether the files are those of a folder that timm or mmpretrain loads.
        is_backbone: Whether the file of weights lacks the head.
        quantized: Measurements of the INT8 graph; None without one.
        onnx_preprocessing: Whether the ONNX file prepares the images itself.

    Returns:
        Markdown with the front matter of the Hugging Face hub.
    """
    model = mapping(run, 'model')
    sections = {
        'Student': _student_facts(record, run, student),
        'Training': _training_facts(record, run, model),
        'Losses': _losses(run, student),
        'Accuracy': _accuracy(record, run),
        'Data': _data_facts(run),
        **({'INT8': quantized.facts()} if quantized else {}),
        'Files': _file_facts(files),
    }
    has_head = student is None or bool(student.num_classes)
    front_matter = _front_matter(mapping(model, 'student'), has_head)
    lines = [front_matter, f'# {_title(run, model)}', '']
    for title, items in sections.items():
        lines += [f'## {title}', '', *(f'- {item}' for item in items), '']
    if student and is_backbone:
        lines += ['## Load the backbone', '', *_backbone_code(student, *files)]
    elif student:
        lines += [
            '## Load the student',
            '',
            *_code(
                student, files, is_folder, has_head and bool(record.classes), onnx_preprocessing
            ),
        ]
    return '\n'.join(lines).rstrip() + '\n'


def _title(run: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    student = _model_name(mapping(model, 'student'))
    teacher = ' and '.join(_model_name(each) for each, _ in _teachers(model))
    data = _data_info(dataset_of(run, 'train_dataloader'))['name']
    return escaped(f'{student} distilled from {teacher} on {data}')


def _front_matter(student: Mapping[str, Any], has_head: bool) -> str:
    task = 'image-classification' if has_head else 'image-feature-extraction'
    data = ModelCardData(
        license='other',
        library_name={'TimmClassifier': 'timm', 'ImageClassifier': 'mmpretrain'}.get(
            type_name(student)
        ),
        pipeline_tag=task,
        tags=[task, 'knowledge-distillation'],
    )
    return f'---\n{data.to_yaml()}\n---\n'


def _student_facts(
    record: RunRecord, run: Mapping[str, Any], student: RebuiltStudent | None
) -> Iterator[str]:
    yield f'Model: {_model(mapping(run, "model", "student"))}'
    averaged = 'exponential moving average (EMA)' if record.has_ema else 'last step, no EMA'
    yield f'Weights: {averaged}'
    if student is None:
        yield f'Parameters, input, normalisation: {NOT_RECORDED}'
        return
    preprocessing = student.preprocessing
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    channels, height, width = student.input_size
    order = preprocessing.channel_order or f'channel order {NOT_RECORDED}'
    yield f'Parameters: {parameters:,}'
    yield f'Input: {channels} x {height} x {width}, {order}'
    yield f'Preprocessing: {_listed(_pipeline(run))}'
    yield (
        f'Normalisation: (pixel - mean) / std of pixels from 0 to 255, mean '
        f'{preprocessing.mean}, std {preprocessing.std}'
    )
    if not student.num_classes:
        yield f'Output: a feature of width {student.width}, no classes'
        return
    names = _listed((f'`{plain(name)}`' for name in record.classes), f'names {NOT_RECORDED}')
    yield f'Output: logits (before softmax) of {student.num_classes} classes: {names}'


def _training_facts(
    record: RunRecord, run: Mapping[str, Any], model: Mapping[str, Any]
) -> Iterator[str]:
    optimizer, train_cfg = mapping(run, 'optim_wrapper'), mapping(run, 'train_cfg')
    configured = train_cfg.get('max_epochs') or train_cfg.get('max_iters')
    batch_size = record.batch_size or mapping(run, 'train_dataloader').get('batch_size')
    default = 'none' if run else NOT_RECORDED
    teachers = _teachers(model)
    for number, (teacher, checkpoint) in enumerate(teachers, 1):
        label = 'Teacher' if len(teachers) == 1 else f'Teacher{number}'
        yield f'{label}: {_model(teacher)}'
        yield f"{label}'s weights: {_teacher_weights(teacher, checkpoint)}"
    yield f'Run: {_known(record.experiment)}'
    yield (
        f'Trained for: {plural(_known(record.epoch), "epoch")}, '
        f'{plural(_known(record.iteration), "iteration")} '
        f'(configured: {_known(configured)})'
    )
    yield f'Batch size: {_known(batch_size)} per process'
    yield f'Processes: {_known(record.processes)}'
    yield f'Optimizer: {_call(mapping(optimizer, "optimizer"))}'
    yield f'Optimizer wrapper: {_call({**optimizer, "optimizer": None}, default="OptimWrapper")}'
    schedule = map(_call, dicts(run.get('param_scheduler')))
    yield f'Learning-rate schedule: {_listed(schedule, "constant" if run else NOT_RECORDED)}'
    yield f'Training pipeline: {_listed(_pipeline(run, "train_dataloader"))}'
    yield f'Batch augmentation: {_listed(map(_call, _augments(run)), default)}'
    yield f'Seed: {_known(record.seed)}'
    commit = NOT_RECORDED if record.commit is None else f'`{record.commit}`'
    yield f'Git commit of the working directory: {commit}'
    yield f'Trained with: mmengine {_known(record.mmengine)}, torch {_known(record.torch)}'
    yield (
        f'Exported with: mldr-kd {__version__}, torch {torch.__version__}, timm '
        f'{timm.__version__}, mmpretrain {mmpretrain.__version__}'
    )
    yield f'Saved: {_known(record.time)}'


def _losses(run: Mapping[str, Any], rebuilt: RebuiltStudent | None) -> Iterator[str]:
    model = mapping(run, 'model')
    student = mapping(model, 'student')
    own = mapping(student, 'loss') or mapping(student, 'head', 'loss')
    unless_given = "the classifier's default" if student else NOT_RECORDED
    has_labels = type_name(dataset_of(run, 'train_dataloader')) != 'UnlabeledFolder'
    if not has_labels or (rebuilt is not None and not rebuilt.num_classes):
        own, unless_given = {}, 'none'
    weight = model.get('student_loss_weight', 1.0)
    weighted = '' if weight == 1 else f', weight {plain(weight)}'
    yield f"Student's own loss: {_call(own) if own else unless_given}{weighted}"
    for loss in dicts(model.get('losses')):
        names = (
            escaped(_listed(as_list(loss.get(side, 'logits')))) for side in ('student', 'teacher')
        )
        between = " and the teacher's ".join(names)
        yield (
            f'`{plain(loss.get("name", "kd"))}`, weight {plain(loss.get("weight", 1.0))}: '
            f"{_call(mapping(loss, 'loss'))} between the student's {between}"
        )


def _accuracy(record: RunRecord, run: Mapping[str, Any]) -> Iterator[str]:
    if 'val_dataloader' in run and run['val_dataloader'] is None:
        yield 'Accuracy: not measured, as the run had no labelled images to validate on'
        return
    dataset = dataset_of(run, 'val_dataloader')
    yield f'Validated on: {_call(dataset) if dataset else NOT_RECORDED}'
    if not record.metrics:
        yield f'Accuracy: {NOT_RECORDED}'
        return
    for name, values in record.metrics.items():
        best = f', best of {plural(len(values), "validation")} {max(values):.2f}'
        shown = escaped(metric_name(run, name))
        yield f'{shown}: last {values[-1]:.2f}{best if "accuracy" in name else ""}'
    if record.validated_epoch is None:
        yield f'Epoch of the last validation: {NOT_RECORDED}'
    elif record.validated_epoch == record.epoch:
        rounded = ', rounded to INT8 by QuantizationAwareHook' if _is_rounded(record, run) else ''
        yield f'The last validation measured these weights{rounded}'
    else:
        yield (
            f'The last validation was after epoch {_known(record.validated_epoch)}; these weights, '
            f'of epoch {_known(record.epoch)}, were saved before their validation'
        )
    if record.best_checkpoint:
        yield f"Run's best checkpoint: `{record.best_checkpoint}`, {_known(record.best_score)}"


def _is_rounded(record: RunRecord, run: Mapping[str, Any]) -> bool:
    """Return whether the student learned and was validated with weights as in an INT8 file."""
    begins = (
        hook.get('begin')
        for hook in dicts(run.get('custom_hooks'))
        if type_name(hook) == 'QuantizationAwareHook'
    )
    epoch = int(record.epoch) if str(record.epoch).isdigit() else 0
    return any(is_number(begin) and epoch > begin for begin in begins)


def _data_info(dataset: Mapping[str, Any]) -> dict[str, str]:
    """Return a data set's name and licence."""
    kind = type_name(dataset)
    known = getattr(registered_modules(DATASETS).get(kind), 'METAINFO', {})
    unknown = {
        'name': plain(kind) or f'data {NOT_RECORDED}',
        'licence': 'unknown; ask the owner of the data',
    }
    return {**unknown, **known, **_MMPRETRAIN_DATA.get(kind, {})}


def _data_facts(run: Mapping[str, Any]) -> Iterator[str]:
    dataset = dataset_of(run, 'train_dataloader')
    if not dataset:
        yield f'Data set: {NOT_RECORDED}'
        return
    info = _data_info(dataset)
    yield f'Data set: {escaped(info["name"])}'
    yield f'Trained on: {_call(dataset)}'
    unlabeled = mapping(run, 'train_dataloader', 'dataset', 'unlabeled')
    if unlabeled:
        ratio = mapping(run, 'train_dataloader', 'sampler').get('unlabeled_ratio')
        yield f'Unlabelled images: {_call(unlabeled)}, {plain(ratio)} of each batch'
    yield f'Licence of the data: {info["licence"]}'
    yield f"Licence of the teacher's weights: {NOT_RECORDED}"


def _file_facts(files: Mapping[str, tuple[Path, str]]) -> Iterator[str]:
    for name, (path, description) in files.items():
        yield f'`{name}`: {description}; sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`'


def _code(
    student: RebuiltStudent,
    files: Iterable[str],
    is_folder: bool,
    has_names: bool,
    onnx_preprocessing: bool,
) -> list[str]:
    """Return Python that loads each file from the card's folder and runs it on an image."""
    weights = [name for name in files if name.endswith(('.pth', '.safetensors'))]
    graphs = [name for name in files if name.endswith(('.pt2', '.onnx'))]
    code = _predict_lines(weights, graphs, is_folder) if student.num_classes else []
    if onnx_preprocessing:
        (name,) = (name for name in graphs if name.endswith('.onnx'))
        graphs.remove(name)
        code += [_RAW_INPUT, '', *_fenced(_raw_onnx_lines(name))]
    deviation = student.preprocessing.deviation
    if deviation and (student.is_timm or graphs or (weights and not is_folder)):
        of_code = "The validation's images differ slightly from those of this code"
        code += [f'{of_code}: {escaped(deviation)}.', '']
    if student.is_built:
        code += _fenced(_built_lines(student, *weights)) if weights else []
    elif is_folder and student.is_timm:
        code += _fenced(_timm_folder(has_names))
    elif is_folder:
        code += _fenced(_MMPRETRAIN_FOLDER if student.num_classes else _MMPRETRAIN_BACKBONE)
    if graphs or (weights and not is_folder):
        code += [_INPUT, '', *_fenced(student.preprocessing.code())]
    if weights and not is_folder and not student.is_built:
        load = _timm_lines if student.is_timm else _mmpretrain_lines
        code += _fenced([*load(student, *weights), *_RUN])
    for name in graphs:
        code += _fenced(_onnx_lines(name) if name.endswith('.onnx') else _torch_export_lines(name))
    if student.num_classes:
        return code
    return [
        line.replace('(N, classes)', '(N, width)').replace('logits', 'feature') for line in code
    ]


def _predict_lines(weights: Sequence[str], graphs: Sequence[str], is_folder: bool) -> list[str]:
    """Return the command that predicts with a file of the card's folder."""
    names = ['.'] if is_folder else [*weights, *graphs]
    students = [name for name in names if not name.endswith('.pt2')]
    if not students:
        return []
    command = f'mldr-kd predict {shlex.quote(students[0])} IMAGES'
    return ['With mldr-kd, for files and folders of images:', '', '```bash', command, '```', '']


def _backbone_code(student: RebuiltStudent, file: str) -> list[str]:
    """Return Python that loads a file of a backbone's weights."""
    if student.is_timm:
        arguments = {k: v for k, v in student.timm_arguments.items() if k != 'num_classes'}
        return _fenced(
            [
                'import timm',
                '',
                'model = timm.create_model(',
                f'    {student.config["model_name"]!r},',
                *(f'    {name}={value!r},' for name, value in arguments.items()),
                '    features_only=True,',
                '    pretrained=True,',
                f'    pretrained_cfg_overlay=dict(file={file!r}, custom_load=False),',
                ')',
            ]
        )
    backbone = {**mapping(student.config, 'backbone')}
    if not backbone:
        return ['The names are those of the student without its head.']
    backbone['type'] = f'mmpretrain.{type_name(backbone)}'
    backbone['init_cfg'] = dict(type='Pretrained', checkpoint=file)
    return [
        'In a config of mmdetection or mmsegmentation:',
        '',
        *_fenced([f'backbone = {backbone!r}']),
    ]


def _fenced(lines: Iterable[str]) -> list[str]:
    return ['```python', *lines, '```', '']


_INPUT = (
    'The input is normalised images, float32 (N, 3, H, W); the output logits (N, classes). '
    'The first block prepares one image.'
)
_RAW_INPUT = (
    'The ONNX file prepares the images itself. Its input is RGB images of any size, uint8 '
    '(N, height, width, 3); the output probabilities (N, classes).'
)
_RUN = ['with torch.no_grad():', '    logits = model(torch.from_numpy(images))']
_MMPRETRAIN_FOLDER = [
    'from mmpretrain import ImageClassificationInferencer',
    '',
    "inferencer = ImageClassificationInferencer('config.py', pretrained='model.pth')",
    "(result,) = inferencer('image.jpg')",
    "print(result.get('pred_class', result['pred_label']), result['pred_score'])",
]


_MMPRETRAIN_BACKBONE = [
    'from mmpretrain import get_model',
    '',
    "model = get_model('config.py', pretrained='model.pth')",
]


def _timm_folder(has_names: bool) -> list[str]:
    return [
        'import timm',
        'import torch',
        'from PIL import Image, ImageOps',
        '',
        "model = timm.create_model('local-dir:.', pretrained=True).eval()  # timm 1.0.16 or newer",
        'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))',
        "image = ImageOps.exif_transpose(Image.open('image.jpg')).convert('RGB')",
        'with torch.no_grad():',
        '    logits = model(transform(image)[None])',
        *(["print(model.pretrained_cfg['label_names'][logits.argmax()])"] if has_names else []),
    ]


def _timm_lines(student: RebuiltStudent, weights: str) -> list[str]:
    return [
        'import timm',
        'import torch',
        '',
        'model = timm.create_model(',
        f'    {student.config["model_name"]!r},',
        *(f'    {name}={value!r},' for name, value in student.timm_arguments.items()),
        f'    checkpoint_path={weights!r},',
        ').eval()',
    ]


def _built_lines(student: RebuiltStudent, weights: str) -> list[str]:
    is_pickle = weights.endswith('.pth')
    return [
        'import torch',
        *([] if is_pickle else ['from safetensors.torch import load_file']),
        '',
        *_build_lines(student.config),
        f"model.load_state_dict(torch.load({weights!r})['state_dict'])"
        if is_pickle
        else f'model.load_state_dict(load_file({weights!r}))',
    ]


def _build_lines(config: Mapping[str, Any]) -> list[str]:
    if 'module' not in config:
        return [f'model = ...  # your {plain(config["model_name"])}']
    package, _, function = config['module'].partition(':')
    arguments = {**(config.get('kwargs') or {})}
    arguments.pop('pretrained', None)
    # The names were imported and called a moment ago, when the student was built.
    return [
        f'from {package} import {function.partition(".")[0]}',
        '',
        f'model = {function}(**{arguments!r})',
    ]


def _mmpretrain_lines(student: RebuiltStudent, weights: str) -> list[str]:
    config = str(Path(weights).with_suffix('.py'))
    if weights.endswith('.pth'):
        return [
            'import torch',
            'from mmpretrain import get_model',
            '',
            f'model = get_model({config!r}, pretrained={weights!r})',
        ]
    return [
        'import torch',
        'from mmpretrain import get_model',
        'from safetensors.torch import load_file',
        '',
        f'model = get_model({config!r})',
        f'model.load_state_dict(load_file({weights!r}))',
    ]


def _onnx_lines(name: str) -> list[str]:
    return [
        'import onnxruntime',
        '',
        f'session = onnxruntime.InferenceSession({name!r})',
        "logits = session.run(['logits'], {'images': images})[0]",
    ]


def _raw_onnx_lines(name: str) -> list[str]:
    return [
        'import numpy',
        'import onnxruntime',
        'from PIL import Image, ImageOps',
        '',
        "image = ImageOps.exif_transpose(Image.open('image.jpg')).convert('RGB')",
        f'session = onnxruntime.InferenceSession({name!r})',
        "(probabilities,) = session.run(None, {'images': numpy.array(image)[None]})",
    ]


def _torch_export_lines(name: str) -> list[str]:
    return [
        'import torch',
        '',
        f'model = torch.export.load({name!r}).module()',
        'logits = model(torch.from_numpy(images))',
    ]


def _pipeline(run: Mapping[str, Any], loader: str = 'val_dataloader') -> list[str]:
    is_validation = loader == 'val_dataloader'
    dataset = validation_part(run) if is_validation else dataset_of(run, loader)
    return [_call(step) for step in dicts(dataset.get('pipeline'))]


def _augments(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the batch augmentations, such as mixup."""
    model = mapping(run, 'model')
    student = mapping(model, 'student')
    preprocessors = (mapping(part, 'data_preprocessor') for part in (student, model, run))
    for holder in (mapping(student, 'train_cfg'), *preprocessors):
        augments = holder.get('augments') or mapping(holder, 'batch_augments').get('augments')
        if augments:
            return dicts(augments)
    return []


def _teachers(model: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Any]]:
    """Return the config and the checkpoint of each teacher."""
    teachers, checkpoints = model.get('teacher'), model.get('teacher_checkpoint')
    if not isinstance(teachers, (list, tuple)):
        return [(mapping(model, 'teacher'), checkpoints)]
    given = as_list(checkpoints) + [None] * len(teachers)
    return list(zip(dicts(teachers), given, strict=False))


def _teacher_weights(teacher: Mapping[str, Any], path: Any) -> str:
    file = path or weights_file(teacher)
    if file:
        return f'`{_file_name(str(file))}`'
    kind, backbone = type_name(teacher), mapping(teacher, 'backbone')
    # ModuleClassifier passes kwargs to a function of torchvision, transformers or another package.
    kwargs = mapping(teacher, 'kwargs')
    pretrained = (
        kwargs.get('weights')
        or kwargs.get('pretrained')
        or teacher.get('pretrained')
        or backbone.get('pretrained')
    )
    if isinstance(pretrained, str) and not kwargs:  # of an older backbone of OpenMMLab
        return f'`{_file_name(pretrained)}`'
    if pretrained:
        return f'pretrained, from {_library(teacher)}'
    if kind == 'BuiltClassifier':
        return 'those of the module that was passed'
    return 'initialised by its config' if teacher else NOT_RECORDED


def _file_name(path: str) -> str:
    """Return the name of a file of weights, whole if it is a short one: ``torchvision://NAME``."""
    is_short = re.fullmatch(r'(?!https?:|file:)[\w-]+://[^/]+', path)
    return plain(path if is_short else path.rpartition('/')[2])


def _library(classifier: Mapping[str, Any]) -> str:
    """Return the library that loads the weights of a pretrained classifier."""
    kind, module = type_name(classifier), str(classifier.get('module') or '')
    package = module.partition(':')[0]
    if kind == 'HuggingFaceClassifier' or package == hugging_face.__name__:
        return 'transformers'
    return escaped(package.partition('.')[0]) if package else 'timm'


def _model(config: Mapping[str, Any]) -> str:
    """Describe a classifier in one line."""
    backbone = mapping(config, 'backbone') or config
    left_out = {'data_preprocessor', 'init_cfg', 'loss', 'train_cfg', 'pretrained'}
    return _call({k: v for k, v in backbone.items() if k not in left_out})


def _model_name(config: Mapping[str, Any]) -> str:
    backbone = mapping(config, 'backbone') or config
    return plain(config.get('model_name') or type_name(backbone) or f'a model ({NOT_RECORDED})')


def _call(config: Mapping[str, Any], default: str = NOT_RECORDED) -> str:
    """Format a config as a call, ``SGD(lr=0.05, momentum=0.9)``, without paths and None values."""
    kind = type_name(config) or default
    if not config:
        return escaped(kind)
    given = {k: v for k, v in config.items() if k not in _NOT_SHOWN and v is not None}
    arguments = ', '.join(f'{key}={value!r}' for key, value in given.items())
    return f'`{plain(f"{kind}({arguments})" if arguments else kind)}`'


def _listed(items: Iterable[Any], otherwise: str = NOT_RECORDED) -> str:
    return ', '.join(map(str, items)) or otherwise


def _known(value: Any) -> str:
    return NOT_RECORDED if value is None else escaped(value)
