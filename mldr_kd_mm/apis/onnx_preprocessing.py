"""Preprocessing of images inside an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from PIL import Image

from mldr_kd_mm.apis.description import StudentDescription
from mldr_kd_mm.apis.student import RebuiltStudent
from mldr_kd_mm.apis.student_images import StudentImages
from mldr_kd_mm.utils.errors import ConfigError

# Pillow's and OpenCV's cubic filters differ, and only Pillow smooths an image that it shrinks.
_CUBIC = {'pillow': -0.5, 'cv2': -0.75}
_MODES = {'bilinear': 'linear', 'bicubic': 'cubic'}
# (width, height) of the images that a graph is checked on.
_SHAPES = ((400, 300), (300, 400), (1, 40), (640, 64), (37, 50), (224, 224))


def check_preprocessing(description: StudentDescription) -> None:
    """Check that a graph can prepare the images of a student.

    Args:
        description: Description of the student.

    Raises:
        ConfigError: The validation does more than resize and crop, or resizes with another filter.
    """
    resize = description.resize
    if description.output != 'logits':
        problem = 'a student without a head predicts no probabilities'
    elif resize is None:
        problem = 'the validation does more than resize an image and crop its centre'
    elif resize['interpolation'] not in _MODES:
        problem = f'ONNX has no {resize["interpolation"]} resizing'
    else:
        return
    raise ConfigError(f'onnx_preprocessing=True: {problem}; export without it')


def with_preprocessing(model: Any, description: StudentDescription) -> Any:
    """Return a graph from uint8 RGB images (N, height, width, 3) to probabilities (N, classes).

    Args:
        model: ``onnx.ModelProto`` from normalised ``images`` to ``logits``.
        description: Description of the student.

    Returns:
        The graph, an ``onnx.ModelProto``, with its description as metadata.
    """
    import onnx

    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    opset = next(each.version for each in model.opset_import if not each.domain)
    text = f"""
        <ir_version: {model.ir_version}, opset_import: ["" : {opset}]>
        prepare (uint8[{batch.dim_param or batch.dim_value}, height, width, 3] images)
            => (float[{batch.dim_param or batch.dim_value}, 3, rows, columns] normalised) {{
            {' '.join(_steps(description))}
        }}"""
    merged = onnx.compose.merge_models(
        onnx.parser.parse_model(text),
        model,
        io_map=[('normalised', 'images')],
        prefix2='network/',
    )
    (output,) = merged.graph.output
    merged.graph.node.append(
        onnx.helper.make_node('Softmax', [output.name], ['probabilities'], axis=1)
    )
    output.name = 'probabilities'
    onnx.helper.set_model_props(merged, of_graph(description).to_metadata())
    onnx.checker.check_model(merged)
    return merged


def of_graph(description: StudentDescription) -> StudentDescription:
    """Return the description of a graph with preprocessing.

    Args:
        description: Description of the student.
    """
    return replace(description, input='uint8', output='probabilities')


@torch.no_grad()
def largest_difference(
    session: Any, student: RebuiltStudent, description: StudentDescription
) -> float:
    """Compare the probabilities of a graph with the student's on images of odd shapes.

    Args:
        session: onnxruntime's session of the graph.
        student: The student.
        description: Its description.

    Returns:
        The largest difference in the probability of the student's first class.
    """
    largest = 0.0
    with TemporaryDirectory() as folder:
        paths = []
        for number, shape in enumerate(_SHAPES):
            paths.append(str(Path(folder, f'{number}.png')))
            _draw(shape, number).save(paths[-1])
        prepared = StudentImages(paths, description)
        decoded = StudentImages(paths, of_graph(description))
        for index in range(len(paths)):
            images = prepared.normalise(prepared.read(index)[None])
            expected = student.model(images, mode='tensor').softmax(1)[0]
            best = expected.argmax()
            (found,) = session.run(None, {'images': decoded.read(index)[None].numpy()})
            difference = abs(found[0, best] - expected[best]).item()
            largest = max(largest, difference) if difference == difference else difference
    return largest


def _draw(shape: tuple[int, int], seed: int) -> Image.Image:
    """Return an image with the large and the small structures of a photograph."""
    random = numpy.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=numpy.uint8))
    smooth = numpy.asarray(coarse.resize(shape, Image.Resampling.BICUBIC)).astype(int)
    noise = random.integers(-25, 26, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(numpy.uint8))


def _steps(description: StudentDescription) -> Iterator[str]:
    """Yield the operations in ONNX's text format."""
    size, resize = description.input_size[1:], description.resize
    yield 'planes = Transpose<perm=[0, 3, 1, 2]>(images)'
    if resize['crop_mode'] == 'center':
        # The integers of mmpretrain's ResizeEdge: scale * side / short side, rounded down.
        yield f'scale = Constant<value_ints={resize["scale"][:1]}>()'
        yield 'sides = Shape<start=1, end=3>(images)'
        yield 'short = ReduceMin<keepdims=1>(sides)'
        yield 'product = Mul(sides, scale)'
        yield 'scaled = Div(product, short)'
    else:
        yield f'scaled = Constant<value_ints={list(resize["scale"])}>()'
    yield 'outer = Shape<start=0, end=2>(planes)'
    yield 'sizes = Concat<axis=0>(outer, scaled)'
    cubic = _CUBIC[resize['backend']]
    attributes = (
        f'mode="{_MODES[resize["interpolation"]]}", cubic_coeff_a={cubic}, '
        'coordinate_transformation_mode="half_pixel"'
    )
    if resize['backend'] == 'pillow':
        # For uint8, onnxruntime computes with the integers of Pillow.
        attributes += ', antialias=1, exclude_outside=1'
        yield f'resized = Resize<{attributes}>(planes, , , sizes)'
    else:
        yield 'unrounded = Cast<to=1>(planes)'
        yield f'fractions = Resize<{attributes}>(unrounded, , , sizes)'
        yield 'rounded = Round(fractions)'
        yield 'low = Constant<value_float=0.0>()'
        yield 'high = Constant<value_float=255.0>()'
        yield 'resized = Clip(rounded, low, high)'
    yield f'crop = Constant<value_ints={list(size)}>()'
    yield 'margins = Sub(scaled, crop)'
    # mmcv's CenterCrop rounds half a pixel to the even number, as Round does.
    yield 'wide = Cast<to=1>(margins)'
    yield 'half = Constant<value_float=0.5>()'
    yield 'halves = Mul(wide, half)'
    yield 'even = Round(halves)'
    yield 'first = Cast<to=7>(even)'
    yield 'last = Add(first, crop)'
    yield 'axes = Constant<value_ints=[2, 3]>()'
    yield 'cropped = Slice(resized, first, last, axes)'
    if description.channel_order == 'BGR':
        yield 'order = Constant<value_ints=[2, 1, 0]>()'
        yield 'ordered = Gather<axis=1>(cropped, order)'
    else:
        yield 'ordered = Identity(cropped)'
    yield 'pixels = Cast<to=1>(ordered)'
    for name in ('mean', 'std'):
        values = ', '.join(f'{value:.9g}' for value in getattr(description, name))
        yield f'{name} = Constant<value = float[1, 3, 1, 1] {{{values}}}>()'
    yield 'centred = Sub(pixels, mean)'
    yield 'normalised = Div(centred, std)'
