"""Cost of a classifier, measured on this machine's CPU."""

from __future__ import annotations

import io
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.logging import MMLogger
from torch import Tensor, nn

from mldr_kd_mm.utils.errors import describe
from mldr_kd_mm.utils.logging import plural

_BATCH = 64
_SECONDS, _MOST_REPEATS, _LEAST_REPEATS = 0.3, 20, 3


@dataclass
class Efficiency:
    """Cost of a model; None or absent where it cannot be measured.

    Attributes:
        parameters: Number of parameters.
        flops: Multiply-adds for one image, as mmengine counts them.
        megabytes: Size of the weights in a file, in MB.
        latency: Runtime -> median time for one image, in ms.
        images_per_second: Runtime -> images per second at batch 64.
        note: Reason for what is missing.
    """

    parameters: int
    flops: int | None
    megabytes: float
    latency: dict[str, float] = field(default_factory=dict)
    images_per_second: dict[str, float] = field(default_factory=dict)
    note: str = ''


def measure(model: nn.Module, size: Sequence[int]) -> Efficiency:
    """Measure a classifier in PyTorch, and in ONNX Runtime if it is installed.

    Args:
        model: The classifier, in evaluation mode, on the CPU.
        size: (3, H, W) of its images.

    Returns:
        Its cost.
    """
    weights = model.state_dict().values()
    cost = Efficiency(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=_count_flops(model, size),
        megabytes=sum(tensor.numel() * tensor.element_size() for tensor in weights) / 1e6,
    )
    _time(cost, 'PyTorch', model, size)
    if all(find_spec(name) for name in ('onnx', 'onnxruntime')):
        try:
            _time(cost, 'ONNX Runtime', _to_onnx(model, size), size)
        except Exception as error:  # from the exporter, which supports some models only
            cost.note = f'no ONNX Runtime: {type(error).__name__}: {describe(error)[:200]}'
    else:
        cost.note = "no ONNX Runtime: run pip install 'mldr-kd-mm[onnx]'"
    return cost


def describe_machine() -> str:
    """Return the processor, the number of threads and the version of torch."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    name = names[0] if names else platform.processor() or platform.machine()
    threads = plural(torch.get_num_threads(), 'thread')
    return f'{name}, {threads}, torch {torch.__version__}'


def _count_flops(model: nn.Module, size: Sequence[int]) -> int | None:
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')  # it warns about operators that it does not count
    try:
        found = get_model_complexity_info(model, tuple(size), show_table=False, show_arch=False)
    except Exception:  # from torch's tracer, which supports some models only
        return None
    finally:
        logger.setLevel(level)
    return int(found['flops'])


def _time(
    cost: Efficiency, runtime: str, run: Callable[[Tensor], object], size: Sequence[int]
) -> None:
    cost.latency[runtime] = 1000 * _seconds(run, torch.randn(1, *size))
    cost.images_per_second[runtime] = _BATCH / _seconds(run, torch.randn(_BATCH, *size))


@torch.inference_mode()
def _seconds(run: Callable[[Tensor], object], images: Tensor) -> float:
    """Return the median time of a call, after one that is not counted."""
    run(images)
    times: list[float] = []
    while len(times) < _LEAST_REPEATS or (sum(times) < _SECONDS and len(times) < _MOST_REPEATS):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return median(times)


def _to_onnx(model: nn.Module, size: Sequence[int]) -> Callable[[Tensor], np.ndarray]:
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter based on torch.export takes three times as long.
        warnings.simplefilter('ignore')
        torch.onnx.export(
            model,
            (torch.randn(2, *size),),
            file,
            dynamo=False,
            input_names=['images'],
            dynamic_axes={'images': {0: 'batch'}},
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        file.getvalue(), options, providers=['CPUExecutionProvider']
    )
    return lambda batch: session.run(None, {'images': batch.numpy()})[0]
