"""The plain student of a distillation run, in files that need nothing of this package."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from mldr_kd_mm.apis.model_card import Student, image_texts, mapping, model_card
from mldr_kd_mm.models.builder import build_classifier, fill
from mldr_kd_mm.models.taps.stages import fixed_size
from mldr_kd_mm.registry import MODELS, SCOPE
from mldr_kd_mm.utils.checkpoint import load_checkpoint, student_state_dict
from mldr_kd_mm.utils.errors import ConfigError, check_sizes, named, printable
from mldr_kd_mm.utils.safe_config import read_config

TOLERANCE = 1e-4
"""How far the logits of an exported graph may be from the student's, as a part of the largest
logit, or of 1 where all are smaller."""

_ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
# What inference does not need, and what would read other files: the weights are the checkpoint's.
_LEFT_OUT = {
    'batch_augments',
    'checkpoint_path',
    'init_cfg',
    'pretrained',
    'train_cfg',
    'trust_remote_code',
}


class ExportError(RuntimeError):
    """A student cannot be written in a format; the message is one line."""


class Exported(NamedTuple):
    """What was written.

    Attributes:
        files: Path -> what it is, in words.
        notes: What the user may want to know.
    """

    files: dict[Path, str]
    notes: tuple[str, ...]


def export_student(
    checkpoint: str,
    out: str,
    onnx: bool = False,
    torch_export: bool = False,
    config: str | None = None,
) -> Exported:
    """Write the student's weights and a model card, all of it or nothing.

    The graphs take normalised images, float32 (N, 3, H, W), and return logits (N, C). N is free,
    or, where the student's code cannot be captured so, 1. Each is read back and compared with the
    student on random images.

    Args:
        checkpoint: Path of the checkpoint of a distillation run.
        out: Path of the file of the weights, ``.pth`` or ``.safetensors``. The other files lie
            beside it and have its name with another end, ``.md``, ``.onnx`` and ``.pt2``.
        onnx: Whether to write an ONNX file.
        torch_export: Whether to write a file of ``torch.export``.
        config: Path of the run's config, which is read instead of the copy in the checkpoint.
            Unlike the copy, it may run code, such as the import of a package with the student.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: If there is no such checkpoint or config.
        ConfigError: If the checkpoint is of another kind, a file is there already, or the student
            of a graph cannot be built from its config.
        ExportError: If a graph cannot be written, or has other logits than the student.
    """
    weights_file = Path(out)
    if weights_file.suffix not in ('.pth', '.safetensors'):
        raise ConfigError(f'out={out!r}: must end with .pth or .safetensors')
    # ONNX comes last: torch 2.6 changes the program that it makes it of.
    ends = {'.pt2': torch_export, '.onnx': onnx}
    graph_files = [weights_file.with_suffix(end) for end, wanted in ends.items() if wanted]
    card_file = weights_file.with_suffix('.md')
    for path in (weights_file, card_file, *graph_files):
        if os.path.lexists(path):
            raise ConfigError(
                f'out={str(path)!r}: is there already: remove it, or name another file'
            )
    if onnx:
        _check_onnx_packages()

    content = load_checkpoint(checkpoint)
    weights = {key: value.contiguous() for key, value in student_state_dict(content).items()}
    run, student, notes = {}, None, []
    try:
        run = _read_run_config(content, config)
        student = rebuild_student(run, weights)
    except ConfigError as error:
        if graph_files:
            raise
        notes.append(f'the card says little, for the student cannot be built: {error}')

    weights_file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=weights_file.parent) as name:
        folder = Path(name)
        _write_weights(folder / weights_file.name, weights, content)
        written = {weights_file: f'{len(weights)} tensors of the student'}
        if student and graph_files:
            program = _capture(student)
            batches = (1, 3) if _is_free(program) else (1,)
            if len(batches) == 1:
                notes.append("the graph's batch is 1, for the student's code fixes the batch")
            texts = image_texts(content, run, student)
            for path in graph_files:
                write = _write_onnx if path.suffix == '.onnx' else _write_torch_export
                graph = write(program, folder / path.name, texts)
                difference = _difference(graph, student, batches)
                written[path] = f"its logits differ from the student's by at most {difference:.1e}"
        files = {path.name: (folder / path.name, words) for path, words in written.items()}
        (folder / card_file.name).write_text(model_card(content, run, student, files))
        written[card_file] = 'the model card'
        for path in written:
            os.replace(folder / path.name, path)
    return Exported(written, tuple(notes))


def rebuild_student(run: dict[str, Any], weights: dict[str, Tensor]) -> Student:
    """Build the student that a run's config describes, and fill it.

    Args:
        run: The config of the run.
        weights: All of the student's weights.

    Returns:
        The student.

    Raises:
        ConfigError: If it has no student, one whose ``type`` is registered nowhere, or one that
            these weights do not fit.
    """
    model = mapping(run, 'model')
    config = _inference_config(mapping(model, 'student'))
    if not config:
        raise ConfigError('model.student: the config has none')
    _check_types(config)
    with DefaultScope.overwrite_default_scope(SCOPE), named('model.student'):
        shared = mapping(model, 'data_preprocessor') or mapping(run, 'data_preprocessor')
        own = mapping(config, 'data_preprocessor')
        preprocessor = _inference_config({**shared, **own})
        _check_types(preprocessor)
        # Some models write into their configs.
        classifier = build_classifier(
            copy.deepcopy({**config, 'data_preprocessor': preprocessor})
        ).eval()
        report, mistake = fill(classifier, weights)
        if mistake or report.unexpected:
            raise ConfigError(f'model.student: the weights do not fit it: {mistake or report}')
        size = model.get('input_size') or (3, *(fixed_size(classifier) or (224, 224)))
        check_sizes(3, input_size=size)
        with torch.no_grad():
            num_classes = classifier(torch.zeros(1, *size), mode='tensor').shape[1]
    return Student(classifier, config, tuple(size), num_classes)


def _read_run_config(content: dict[str, Any], path: str | None) -> dict[str, Any]:
    if path is not None:
        with named('config'):
            return Config.fromfile(path).to_dict()
    text = mapping(content, 'meta').get('cfg')
    if not isinstance(text, str):
        raise ConfigError("checkpoint: meta['cfg']: there is none: give the config's path")
    return read_config(text)


def _inference_config(value: Any) -> Any:
    """A copy without what only training needs."""
    if isinstance(value, dict):
        return {k: _inference_config(v) for k, v in value.items() if k not in _LEFT_OUT}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inference_config, value))
    return value


def _check_types(config: Any) -> None:
    """Raise for a ``type`` that is not registered: mmengine would import and call it."""
    if isinstance(config, dict):
        kind = config.get('type')
        if isinstance(kind, str) and kind.rpartition('.')[2] not in _registered():
            raise ConfigError(
                f'type={printable(kind)!r}: is not registered: give the config (--config), whose '
                'custom_imports name its package'
            )
    values = config.values() if isinstance(config, dict) else config
    for value in values:
        if isinstance(value, (dict, list, tuple)):
            _check_types(value)


def _registered() -> set[str]:
    """Names of all models and parts of models."""
    MODELS.import_from_location()
    names, registry = set(), MODELS
    while registry is not None:
        names |= set(registry.module_dict)
        registry = registry.parent
    return names


def _write_weights(path: Path, weights: dict[str, Tensor], content: dict[str, Any]) -> None:
    if path.suffix == '.safetensors':
        save_file(weights, path, metadata={'format': 'pt'})
        return
    # mmpretrain's init_model reads the names of the classes from here.
    known = mapping(content, 'meta').get('dataset_meta')
    torch.save({'state_dict': weights, 'meta': {'dataset_meta': known} if known else {}}, path)


class _Logits(nn.Module):
    """A classifier as a function of images alone."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images, mode='tensor')


def _capture(student: Student) -> ExportedProgram:
    """The student's graph, whose batch is free if it can be, else 1."""
    graph = _Logits(student.model)

    def capture(batch: int, shapes: tuple | None) -> ExportedProgram:
        images = torch.zeros(batch, *student.input_size)
        with torch.no_grad():
            return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)

    with suppress(Exception):  # whatever the student's code raises for a size that is no number
        # torch 2.6 takes a size without bounds for one that might be 2**63 - 1.
        batch = torch.export.Dim('batch', min=1, max=2**31 - 1)
        return capture(2, ({0: batch},))
    with _explained('the student'):
        return capture(1, None)


def _is_free(program: ExportedProgram) -> bool:
    """Whether the batch is a symbol, not a number."""
    (name,) = program.graph_signature.user_inputs
    images = next(node for node in program.graph.nodes if node.name == name)
    return isinstance(images.meta['val'].shape[0], torch.SymInt)


def _write_torch_export(
    program: ExportedProgram, path: Path, texts: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    with _explained(path.name):
        torch.export.save(program, path, extra_files={'metadata.json': json.dumps(texts)})
        return torch.export.load(path).module()


def _write_onnx(
    program: ExportedProgram, path: Path, texts: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    with _explained(path.name):
        model = torch.onnx.export(
            program,
            dynamo=True,
            input_names=['images'],
            output_names=['logits'],
            dynamic_shapes={'images': {0: 'batch'}} if _is_free(program) else None,
            verbose=False,
        ).model_proto
        if _is_free(program):
            # torch 2.6 names it after its example's, and of some models gives it that size between.
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_param = 'batch'
            del model.graph.value_info[:]
        onnx.helper.set_model_props(model, texts)
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


@torch.no_grad()
def _difference(
    graph: Callable[[Tensor], Tensor], student: Student, batches: Sequence[int]
) -> float:
    """The largest difference of the logits, on random images in batches of these sizes."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in batches:
        images = torch.randn(batch, *student.input_size, generator=generator)
        logits = student.model(images, mode='tensor')
        with _explained('the graph'):
            difference = (graph(images) - logits).abs().max().item()
        # Logits of hundreds, as of a student that has hardly trained, are themselves not so exact.
        allowed = TOLERANCE * max(1.0, logits.abs().max().item())
        if not difference <= allowed:  # nor is NaN
            raise ExportError(
                f'the exported graph differs from the student by {difference:.1e}, more than '
                f'{allowed:.1e}: nothing was written'
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what torch and onnx raise, pages at times, into one line."""
    try:
        yield
    except Exception as error:
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0])
        raise ExportError(f'{what} cannot be exported: {reason}') from error


def _check_onnx_packages() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"onnx: needs {', '.join(missing)}: pip install 'mldr-kd-mm[onnx]'")
