"""Export of a run's student to files that load without this package."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from mldr_kd_mm.apis.backbone import backbone_weights
from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.model_card import model_card
from mldr_kd_mm.apis.onnx_preprocessing import (
    check_preprocessing,
    largest_difference,
    with_preprocessing,
)
from mldr_kd_mm.apis.quantize import Quantized, Quantizer
from mldr_kd_mm.apis.run_record import RunRecord
from mldr_kd_mm.apis.student import RebuiltStudent, read_run_config, rebuild_student
from mldr_kd_mm.apis.student_config import write_config, write_timm_folder
from mldr_kd_mm.models.taps.tapped_model import output_of
from mldr_kd_mm.utils.checkpoint import load_checkpoint, student_state_dict
from mldr_kd_mm.utils.errors import ConfigError, check_file, printable

TOLERANCE = 1e-4
"""Largest allowed difference between the logits of an exported graph and the student's, relative to
the largest logit (or to 1 if all are smaller)."""

PROBABILITY_TOLERANCE = 0.02
"""Largest allowed difference between the probability of the first class by a graph that prepares
the images itself and by the student. Their resizing differs by a grey level in some pixels."""

_ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
_WEIGHTS = ('.pth', '.safetensors')
_GRAPHS = ('.pt2', '.onnx')  # ONNX comes last, because torch 2.6 changes the program it exports
_FOLDER_FILES = (
    'model.safetensors',
    'config.json',
    'model.pth',
    'config.py',
    *(f'model{suffix}' for suffix in _GRAPHS),
)


class ExportError(RuntimeError):
    """The student cannot be exported in a format; the message is one line."""


class Exported(NamedTuple):
    """Result of an export.

    Attributes:
        files: Path -> description of each file written.
        notes: Remarks for the user.
        int8: Measurements of the INT8 graph; None without one.
    """

    files: dict[Path, str]
    notes: tuple[str, ...]
    int8: Quantized | None = None


def export_student(
    checkpoint: str,
    out: str,
    onnx: bool = False,
    torch_export: bool = False,
    config: str | None = None,
    overwrite: bool = False,
    backbone: bool = False,
    int8: bool = False,
    calibrate: str | None = None,
    calibration_images: int | None = None,
    validate: str | None = None,
    max_drop: float | None = None,
    onnx_preprocessing: bool = False,
) -> Exported:
    """Write a run's student and its model card; an error leaves no file behind.

    A folder holds all that timm or mmpretrain needs: weights, architecture, preprocessing and class
    names. ``timm.create_model('local-dir:FOLDER', pretrained=True)`` loads a timm student, and
    ``ImageClassificationInferencer('FOLDER/config.py', 'FOLDER/model.pth')`` any other.

    The graphs map normalised images, float32 (N, 3, H, W), to logits (N, C). N is dynamic, or 1 if
    the student's code fixes the batch size. Each graph is loaded again and compared with the
    student on random images.

    Args:
        checkpoint: Path of the checkpoint of a distillation run.
        out: Path of a folder, or of a file that ends in ``.pth``, ``.safetensors``, ``.onnx`` or
            ``.pt2``. Other files are written beside it, with the suffix ``.md`` for the card, and
            ``.py`` for the config of a student that timm does not build.
        onnx: Whether to write an ONNX file too.
        torch_export: Whether to write a ``torch.export`` file too.
        config: Path of the run's config, to use instead of the copy in the checkpoint. Unlike the
            copy, it is executed, so its ``custom_imports`` can import the student's package.
        overwrite: Whether to replace an earlier export.
        backbone: Whether to write the weights without the head, for detection and segmentation, to
            a ``.pth`` or ``.safetensors`` file.
        int8: Whether to quantise an ``.onnx`` file, see
            :class:`~mldr_kd_mm.apis.quantize.Quantizer`, which takes the next four arguments.
        calibrate: Folder of images to calibrate with.
        calibration_images: Number of images to take from it. None: 256.
        validate: Folder of images to measure the accuracy on. None: the run's validation set.
        max_drop: Largest allowed loss of accuracy by INT8, in percentage points. None: 1.
        onnx_preprocessing: Whether to write an ONNX file that prepares the images itself: from
            ``images``, uint8 RGB (N, height, width, 3) of any size, to ``probabilities`` (N, C).

    Returns:
        The files written and remarks.

    Raises:
        MissingFileError: There is no such checkpoint or config.
        ConfigError: The checkpoint is not of a distillation run, a file exists already, or a folder
            or a graph is requested and the student cannot be built from its config. Or the INT8
            graph loses more than ``max_drop``, or there are no images to measure that. Or ONNX has
            no operations for the preprocessing.
        ExportError: The student's weights or logits are NaN or infinite, a graph cannot be
            written, or its logits differ from the student's.
    """
    is_folder = _is_folder(out)
    adds_graph = onnx or torch_export or onnx_preprocessing
    of_int8 = dict(
        calibrate=calibrate,
        calibration_images=calibration_images,
        validate=validate,
        max_drop=max_drop,
    )
    of_int8 = {name: value for name, value in of_int8.items() if value is not None}
    _check_options(out, backbone, int8, adds_graph, of_int8)
    wanted = {'.pt2': torch_export, '.onnx': onnx or onnx_preprocessing}
    suffix = None if is_folder else Path(out).suffix
    graphs = [name for name in _GRAPHS if wanted[name] or name == suffix]
    if config is not None:
        check_file('config', config)
    if '.onnx' in graphs:
        _check_onnx_packages()

    content = load_checkpoint(checkpoint)
    weights = {key: value.contiguous() for key, value in student_state_dict(content).items()}
    record = RunRecord.read(content, checkpoint)
    run, student, notes = {}, None, []
    try:
        run = read_run_config(record, config)
        student = rebuild_student(run, weights)
    except ConfigError as error:
        if graphs or is_folder or backbone:
            raise
        notes.append(f'the model card is incomplete, because the student cannot be built: {error}')
    _check_finite(weights, student)
    if student and student.is_timm and is_folder and student.preprocessing.deviation:
        notes.append(
            "the validation's images differ slightly from those of timm's transforms: "
            f'{student.preprocessing.deviation}'
        )

    description = StudentDescription.of(record, run, student) if student else None
    metadata = description.to_metadata() if description else {}
    if onnx_preprocessing:
        check_preprocessing(description)
    quantize = quantized = None
    if int8:
        quantize = Quantizer(run, checkpoint, record.classes, student, **of_int8)
        notes += quantize.notes
    paths = _paths(Path(out), is_folder, graphs, student)
    if backbone:
        weights, metadata = backbone_weights(student, weights), {}
        paths.pop('config', None)
    target = paths['card'].parent
    if not overwrite:
        _check_unused([*paths.values(), *([target] if is_folder and not target.is_dir() else [])])
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target) as name:
        folder = Path(name)
        written = {}
        if 'weights' in paths:
            written |= _write_student(folder, paths, weights, record, run, student, metadata)
            if backbone:
                written['weights'] += ' without the head'
        if graphs:
            texts, remarks = _write_graphs(folder, paths, graphs, student, metadata)
            written |= texts
            notes += remarks
        if quantize:
            quantized = quantize(folder / paths['.onnx'].name)
            written['.onnx'] = f'INT8; {quantized.summary()}'
        if onnx_preprocessing:
            path = folder / paths['.onnx'].name
            written['.onnx'] = _add_preprocessing(path, student, description)
        files = {paths[kind].name: (folder / paths[kind].name, written[kind]) for kind in written}
        card = model_card(
            record, run, student, files, is_folder, backbone, quantized, onnx_preprocessing
        )
        (folder / paths['card'].name).write_text(card)
        written['card'] = 'model card'
        for kind in written:
            os.replace(folder / paths[kind].name, paths[kind])
    if overwrite and is_folder:
        # An earlier student may have been of the other library, and exported as a graph, too.
        for path in {target / name for name in _FOLDER_FILES} - {*paths.values()}:
            path.unlink(missing_ok=True)
    files = {paths[kind]: text for kind, text in written.items()}
    return Exported(files, tuple(notes), quantized)


def _is_folder(out: str) -> bool:
    """Return whether the output is a folder, not a file.

    Raises:
        ConfigError: It is neither.
    """
    suffix = Path(out).suffix
    if suffix in _WEIGHTS + _GRAPHS and not out.endswith('/'):
        return False
    if suffix and not out.endswith('/') and not os.path.isdir(out):
        raise ConfigError(
            f'out={out!r}: must end with {", ".join(_WEIGHTS + _GRAPHS)}, or be a folder'
        )
    return True


def _check_options(
    out: str,
    backbone: bool,
    int8: bool,
    adds_graph: bool,
    of_int8: Mapping[str, Any],
) -> None:
    """Refuse options that do not fit the output or each other."""
    suffix = '' if out.endswith('/') else Path(out).suffix
    if backbone and (suffix not in _WEIGHTS or adds_graph):
        raise ConfigError(
            f'out={out!r}: must end with {" or ".join(_WEIGHTS)} for backbone=True, without graphs'
        )
    if int8 and suffix != '.onnx':
        raise ConfigError(f'out={out!r}: must end with .onnx for int8=True')
    if int8 and adds_graph:
        raise ConfigError(
            'int8=True: must be without onnx, torch_export and onnx_preprocessing; export those '
            'separately'
        )
    for name, value in of_int8.items():
        if not int8:
            raise ConfigError(f'{name}={value!r}: must not be set without int8=True')


def _check_unused(paths: Sequence[Path]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise ConfigError(f'out={str(path)!r}: exists already; remove it or name another file')


def _paths(
    out: Path, is_folder: bool, graphs: Sequence[str], student: RebuiltStudent | None
) -> dict[str, Path]:
    """Return the paths of the files of an export: weights, config, graphs and card."""
    is_timm = student is None or student.is_timm
    if is_folder:
        names = ('model.safetensors', 'config.json') if is_timm else ('model.pth', 'config.py')
        paths = dict(zip(('weights', 'config'), map(out.joinpath, names), strict=True))
        stem, card = out / 'model', out / 'README.md'
    else:
        paths = {'weights': out} if out.suffix in _WEIGHTS else {}
        if paths and not is_timm:
            paths['config'] = out.with_suffix('.py')
        stem, card = out, out.with_suffix('.md')
    if student is not None and student.is_built:
        paths.pop('config', None)
    return paths | {name: stem.with_suffix(name) for name in graphs} | {'card': card}


def _write_student(
    folder: Path,
    paths: Mapping[str, Path],
    weights: dict[str, Tensor],
    record: RunRecord,
    run: Mapping[str, Any],
    student: RebuiltStudent | None,
    metadata: dict[str, str],
) -> dict[str, str]:
    """Write weights and config into a folder; return a description of each."""
    written = {'weights': f"{len(weights)} tensors, the student's weights"}
    if 'config' in paths and student.is_timm:
        write_timm_folder(folder, student, record.classes if student.num_classes else ())
        written['config'] = 'architecture, preprocessing and class names for timm'
    elif 'config' in paths:
        write_config(folder / paths['config'].name, run, student)
        written['config'] = 'architecture and preprocessing for mmpretrain'
    _write_weights(folder / paths['weights'].name, weights, record, metadata)
    return written


def _write_graphs(
    folder: Path,
    paths: Mapping[str, Path],
    graphs: Sequence[str],
    student: RebuiltStudent,
    metadata: dict[str, str],
) -> tuple[dict[str, str], list[str]]:
    """Write graphs into a folder and compare them; return their descriptions, and remarks."""
    program = _capture(student)
    is_dynamic = _has_dynamic_batch(program)
    written = {}
    for kind in graphs:
        write = _write_onnx if kind == '.onnx' else _write_torch_export
        graph = write(program, folder / paths[kind].name, metadata)
        difference = _difference(graph, student, (1, 3) if is_dynamic else (1,))
        verb = 'differ' if student.num_classes else 'differs'
        written[kind] = f"{student.output} {verb} from the student's by at most {difference:.1e}"
    fixed = "the graph's batch size is 1, because the student's code fixes it"
    return written, [] if is_dynamic else [fixed]


def _check_finite(weights: Mapping[str, Tensor], student: RebuiltStudent | None) -> None:
    """Refuse a student whose weights, or logits of a random image, are NaN or infinite."""
    bad = [name for name, value in weights.items() if not value.isfinite().all()]
    if bad:
        what = f'{len(bad)} of its tensors, such as {printable(bad[0])},'
    elif student and not _output_of_noise(student).isfinite().all():
        what = f'its {student.output}'
    else:
        return
    raise ExportError(
        f'the student cannot be exported: {what} are NaN or infinite, as training has diverged; '
        'train again with a lower learning rate'
    )


@torch.no_grad()
def _output_of_noise(student: RebuiltStudent) -> Tensor:
    images = torch.randn(1, *student.input_size, generator=torch.Generator().manual_seed(0))
    return output_of(student.model, images)


def _write_weights(
    path: Path, weights: dict[str, Tensor], record: RunRecord, metadata: dict[str, str]
) -> None:
    """Write weights and the description of the student."""
    if path.suffix == '.safetensors':
        save_file(weights, path, metadata={'format': 'pt', **metadata})
        return
    # mmpretrain's init_model reads the class names from here.
    meta = {'dataset_meta': dict(record.dataset_meta)} if record.dataset_meta else {}
    if metadata:
        meta['student'] = metadata
    torch.save({'state_dict': weights, 'meta': meta}, path)


class _Network(nn.Module):
    """A classifier's logits, or its feature, as a function of the images alone."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return output_of(self.classifier, images)


def _capture(student: RebuiltStudent) -> ExportedProgram:
    """Export the student with a dynamic batch size if possible, otherwise with batch size 1."""
    graph = _Network(student.model)

    def capture(batch: int, shapes: tuple | None) -> ExportedProgram:
        images = torch.zeros(batch, *student.input_size)
        with torch.no_grad():
            return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)

    with suppress(Exception):  # the student's code may raise anything for a symbolic size
        # Without bounds torch 2.6 assumes sizes up to 2**63 - 1.
        batch = torch.export.Dim('batch', min=1, max=2**31 - 1)
        return capture(2, ({0: batch},))
    with _explained('the student'):
        return capture(1, None)


def _has_dynamic_batch(program: ExportedProgram) -> bool:
    """Whether the batch size is a symbol, not a number."""
    (name,) = program.graph_signature.user_inputs
    images = next(node for node in program.graph.nodes if node.name == name)
    return isinstance(images.meta['val'].shape[0], torch.SymInt)


def _write_torch_export(
    program: ExportedProgram, path: Path, metadata: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    with _explained(path.name):
        torch.export.save(program, path, extra_files={'metadata.json': json.dumps(metadata)})
        return torch.export.load(path).module()


def _write_onnx(
    program: ExportedProgram, path: Path, metadata: dict[str, str]
) -> Callable[[Tensor], Tensor]:
    import onnx
    import onnxruntime

    with _explained(path.name):
        model = torch.onnx.export(
            program,
            dynamo=True,
            input_names=['images'],
            output_names=[json.loads(metadata['output'])],
            dynamic_shapes={'images': {0: 'batch'}} if _has_dynamic_batch(program) else None,
            verbose=False,
        ).model_proto
        if _has_dynamic_batch(program):
            # torch 2.6 names the dimension after the example's size, and gives inner values of some
            # models that size.
            for value in (*model.graph.input, *model.graph.output):
                value.type.tensor_type.shape.dim[0].dim_param = 'batch'
            del model.graph.value_info[:]
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, path)
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


def _add_preprocessing(path: Path, student: RebuiltStudent, description: StudentDescription) -> str:
    """Add the preprocessing to an ONNX file and compare it; return the file's description."""
    import onnx
    import onnxruntime

    with _explained(path.name):
        onnx.save(with_preprocessing(onnx.load(path), description), path)
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        difference = largest_difference(session, student, description)
    if not difference <= PROBABILITY_TOLERANCE:
        raise ExportError(
            f"{path.name}: with its preprocessing, the probability of the student's first class "
            f'differs by {difference:.1e}, more than {PROBABILITY_TOLERANCE}; nothing was written'
        )
    return (
        f"prepares the images; probabilities differ from the student's by at most {difference:.1e}"
    )


@torch.no_grad()
def _difference(
    graph: Callable[[Tensor], Tensor], student: RebuiltStudent, batches: Sequence[int]
) -> float:
    """Return the largest difference of the logits on random images in batches of these sizes."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in batches:
        images = torch.randn(batch, *student.input_size, generator=generator)
        logits = output_of(student.model, images)
        with _explained('the graph'):
            difference = (graph(images) - logits).abs().max().item()
        # Large logits, such as those of a student that has hardly trained, are less precise.
        allowed = TOLERANCE * max(1.0, logits.abs().max().item())
        if not difference <= allowed:  # NaN is not allowed either
            raise ExportError(
                f'the exported graph differs from the student by {difference:.1e}, more than '
                f'{allowed:.1e}; nothing was written'
            )
        largest = max(largest, difference)
    return largest


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn the long errors of torch and onnx into one line."""
    try:
        yield
    except Exception as error:
        reason = printable((str(error).strip() or type(error).__name__).splitlines()[0])
        raise ExportError(f'{what} cannot be exported: {reason}') from error


def _check_onnx_packages() -> None:
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f'onnx: needs {", ".join(missing)}; run pip install {" ".join(_ONNX_PACKAGES)}'
        )
