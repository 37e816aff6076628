"""Measure and model the cost of a step as classes, batch, stages and processes grow.

python benchmarks/scale.py [--out docs/performance]

Writes ``results.csv`` and one figure per sweep. DFRA runs forward and backward in float32 on one
thread; times are medians of five in CPU time. Its cost model counts the operations of
:mod:`mldr_kd_mm.models.losses.relation`: rows x length x polynomials, or rows x length squared
where a relation matrix is built. The seconds per operation are fitted to the sweep over classes;
the curves of the other two sweeps are predictions.

The processes are real and communicate over gloo: a step of MLDR-KD at 32 px in
DistributedDataParallel. The cost model is the step of one process plus a ring all-reduce, which
sends 2 (p - 1) / p of the gradients' bytes and takes 2 (p - 1) latencies. gloo's link is measured;
the links of nccl are assumed.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from dfra import make_logits, written_out
from dfra import step as dfra_step
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, distributed, nn

from mldr_kd_mm.models.losses import DFRALoss
from mldr_kd_mm.models.losses.relation import _degree
from mldr_kd_mm.registry import MODELS

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

ROOT = Path(__file__).parents[1]
# Sweep -> x -> shape (heads, samples, classes) of DFRA.
SWEEPS: dict[str, dict[int, tuple[int, int, int]]] = {
    'classes': {c: (6, 32, c) for c in (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)},
    'batch': {b: (6, b, 100) for b in (8, 16, 32, 64, 128, 256, 512, 1024)},
    'stages': {s: (s + 2, 64, 100) for s in (0, 1, 2, 4, 6, 8, 12)},
}
# Larger shapes are skipped; the time is extrapolated from the previous shape.
MAX_SECONDS, MAX_GIB = 5, 1
PAIR = 'configs/mldr/deit_to_mobilenet_c100_32px.py'
MAIN_JOB = 'configs/mldr/deit_to_mobilenet_c100.py'
PROCESSES, BATCH, STEPS = (1, 2), 16, 7
SMALL, LARGE = 2**10, 2**24


class Link(NamedTuple):
    """Connection between processes.

    Attributes:
        latency: Latency in seconds.
        bandwidth: Bandwidth in bytes per second, in one direction.
    """

    latency: float
    bandwidth: float

    def all_reduce(self, size: float, processes: int) -> float:
        """Return the seconds of a ring all-reduce of ``size`` bytes."""
        rounds = 2 * (processes - 1)
        return rounds * self.latency + rounds / processes * size / self.bandwidth


NCCL = {
    'NVLink, 200 GB/s': Link(5e-6, 200e9),
    'PCIe, 20 GB/s': Link(1e-5, 20e9),
    '10 Gbit Ethernet': Link(5e-5, 1.2e9),
}


class Work(NamedTuple):
    """Numbers of operations of DFRA for a shape: products with polynomials, relation entries."""

    linear: float
    made: float

    @classmethod
    def of(cls, form: str, student: Tensor, teacher: Tensor) -> Work:
        """Count the operations of the class relation and the sample relation."""
        heads = len(student)
        linear = made = 0
        for rows, others in ((teacher, student), (teacher.mT, student.mT)):
            number, length = rows.shape
            if form == 'written out':
                made += 2 * heads * number * length**2
                continue
            for side, sides, vectors in ((rows, 1, heads + 1), (others, heads, 1)):
                degree = _polynomials(side, teacher.shape[1])
                if form == 'dense' or degree > length / 2:
                    made += sides * number * length**2
                else:
                    linear += sides * number * length * degree * (1 + vectors)
        return cls(linear, made)


def _polynomials(rows: Tensor, classes: int) -> int:
    """Return the number of polynomials that relation.py uses for these rows."""
    low, high = rows.aminmax(dim=-1)
    reach = (rows.abs().amax(-1) * (high - low)).max().item() * classes**-0.5 / 2
    return _degree(reach, torch.finfo(torch.float32).eps / 4)


class Point(NamedTuple):
    """Row of the CSV file."""

    sweep: str
    x: int
    form: str
    measured: float
    predicted: float


def measure_dfra() -> list[Point]:
    """Measure all implementations at all shapes, with the prediction of the cost model."""
    forms: dict[str, Callable] = {
        'written out': written_out,
        'dense': DFRALoss(relation='dense'),
        'auto': DFRALoss(),
    }
    rows, fitted = [], {}
    for form, loss in forms.items():
        found = [(sweep, *point) for sweep in SWEEPS for point in _sweep(form, loss, sweep)]
        first = [(work, seconds) for sweep, _, work, seconds in found if sweep == 'classes']
        made = fitted['dense'][2] if form == 'auto' else None
        fitted[form] = model = _fit(*zip(*first, strict=True), made)
        rows += [
            Point(sweep, x, form, seconds, model[0] + model[1] * work.linear + model[2] * work.made)
            for sweep, x, work, seconds in found
        ]
        print(
            f'{form}: {1e3 * model[0]:.2f} ms, {1e9 * model[1]:.2f} ns per product with a '
            f'polynomial, {1e9 * model[2]:.2f} ns per entry of a relation'
        )
    return rows


def _sweep(form: str, loss: Callable, sweep: str) -> list[tuple[int, Work, float]]:
    found, per_count = [], 0.0
    for x, (heads, batch, classes) in SWEEPS[sweep].items():
        if form == 'written out':
            # The relations of both sides and the tensors that autograd keeps.
            gib = 6 * 4 * heads * (batch * classes**2 + classes * batch**2) / 2**30
            if gib > MAX_GIB:
                break
        student, teacher = make_logits(batch, classes)
        student = student[:1].expand(heads, -1, -1) * torch.linspace(0.8, 1, heads)[:, None, None]
        work = Work.of(form, student, teacher)
        if sum(work) * per_count > MAX_SECONDS:
            break
        seconds = statistics.median(dfra_step(loss, student, teacher)[0] for _ in range(5))
        per_count = seconds / sum(work)
        found.append((x, work, seconds))
        print(f'{form} {sweep}={x}: {1e3 * seconds:.2f} ms', flush=True)
    return found


def _fit(works: list[Work], seconds: list[float], made: float | None) -> np.ndarray:
    """Fit the seconds per call, product and entry by least squares of the relative errors."""
    columns = np.array([(1.0, *work) for work in works])
    target = np.array(seconds)
    known = np.zeros(3) if made is None else np.array([0.0, 0.0, made])
    used = (columns != 0).any(0) & (known == 0)
    relative = columns[:, used] / target[:, None]
    fitted = np.zeros(3)
    fitted[used] = np.linalg.lstsq(relative, 1 - columns @ known / target, rcond=None)[0]
    return np.maximum(fitted, 0) + known


def measure_processes() -> tuple[list[Point], Link, int]:
    """Measure gloo's link and a step in one and two processes; also return the gradients' size."""
    points = []
    for count in PROCESSES:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, '-W', 'ignore', __file__, '--worker', str(count), folder]
            workers = [
                subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True)
                for rank in range(count)
            ]
            outputs = [worker.communicate()[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            raise RuntimeError('a worker failed')
        size, step, alone, small, large = map(float, outputs[0].split()[-5:])
        if count == 1:
            base = step
        # In a ring of two, each process sends half of the bytes twice.
        link = Link(small / 2, LARGE / max(large - small, 1e-9))
        predicted = base + (link.all_reduce(size, count) if count > 1 else 0)
        points.append(Point('processes', count, 'gloo', step, predicted))
        print(
            f'{count} processes: {1e3 * step:.0f} ms per step, {1e3 * alone:.0f} ms without the '
            f'all-reduce of {size / 1e6:.1f} MB'
        )
    print(f'gloo: {1e3 * link.latency:.2f} ms, {link.bandwidth / 1e9:.2f} GB/s')
    return points, link, int(size)


def worker(count: int, folder: str, rank: int) -> None:
    """Time steps and all-reduces in one of the processes."""
    distributed.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=count
    )
    torch.manual_seed(0)
    model = build(PAIR)
    model.init_weights()
    parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    torch.manual_seed(rank)
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(label) for label in torch.randint(0, 100, (BATCH, 1))]
    batch = model.data_preprocessor(dict(inputs=images, data_samples=samples), True)

    def step() -> None:
        losses = parallel(**batch, mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        parallel.zero_grad()

    def alone() -> None:
        with parallel.no_sync():
            step()

    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    small, large = (partial(distributed.all_reduce, torch.zeros(n // 4)) for n in (SMALL, LARGE))
    times = [wall_seconds(call) for call in (step, alone, small, large)]
    distributed.barrier()
    if rank == 0:
        print(size, *times, flush=True)
    # A gloo thread can keep Python from shutting down.
    os._exit(0)


def wall_seconds(call: Callable[[], None]) -> float:
    """Return the median wall-clock seconds of calls that start on all processes at once."""
    times = []
    for _ in range(STEPS + 1):
        distributed.barrier()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def build(path: str) -> nn.Module:
    """Build the Distiller of a config with random teacher weights."""
    init_default_scope('mldr_kd_mm')
    cfg = Config.fromfile(ROOT / path)
    cfg.model.update(teacher_checkpoint=None, data_preprocessor=cfg.data_preprocessor)
    return MODELS.build(cfg.model)


def draw_dfra(points: list[Point], folder: Path) -> None:
    """Draw one figure per sweep, with measurements as points and the cost model as lines."""
    labels = dict(
        classes='classes (6 heads, 32 samples)',
        batch='samples (6 heads, 100 classes)',
        stages='stages (+ 2 heads; 64 samples, 100 classes)',
    )
    for sweep, label in labels.items():
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for form, colour in (('written out', 'C3'), ('dense', 'C1'), ('auto', 'C0')):
            line = [point for point in points if point.sweep == sweep and point.form == form]
            x = [point.x for point in line]
            axes.plot(x, [1e3 * p.measured for p in line], 'o', color=colour, label=form)
            axes.plot(x, [1e3 * p.predicted for p in line], '--', color=colour)
        axes.set(xlabel=label, ylabel='CPU ms per step', yscale='log')
        if sweep != 'stages':
            axes.set_xscale('log')
        finish(figure, axes, 'DFRA: measured (points), model (lines)', folder / f'{sweep}.png')


def draw_processes(points: list[Point], link: Link, size: int, folder: Path) -> None:
    """Draw the measurements over gloo and the predictions for nccl side by side."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    base, *_ = (point.measured for point in points)
    left.plot([p.x for p in points], [1e3 * p.measured for p in points], 'o', label='measured')
    x = range(1, 9)
    curve = [1e3 * (base + (link.all_reduce(size, p) if p > 1 else 0)) for p in x]
    left.plot(x, curve, '--', label='model, one core per process')
    left.set(xlabel='processes (gloo)', ylabel='ms per step', ylim=(0, None))
    left.set_title('MLDR-KD at 32 px, 16 images per process')
    left.legend()
    left.grid(alpha=0.3)

    main_job = 4 * sum(parameter.numel() for parameter in build(MAIN_JOB).parameters())
    x = [2**n for n in range(1, 8)]
    for name, assumed in NCCL.items():
        times = [1e3 * assumed.all_reduce(main_job, p) for p in x]
        right.plot(x, times, '--', label=name)
        print(f'nccl, assumed {name}: {main_job / 1e6:.1f} MB, 4 GPUs {times[1]:.2f} ms')
    right.set(xlabel='GPUs (nccl, not measured)', ylabel='ms per all-reduce', yscale='log')
    right.set_xscale('log', base=2)
    finish(figure, right, f'main config: {main_job / 1e6:.0f} MB', folder / 'processes.png')


def finish(figure, axes, title: str, path: Path) -> None:
    """Save a figure."""
    axes.set_title(title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Run all measurements; write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/scale'), help='output folder')
    parser.add_argument('--worker', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.worker:
        count, folder, rank = args.worker
        worker(int(count), folder, int(rank))
        return

    args.out.mkdir(parents=True, exist_ok=True)
    points = measure_dfra()
    draw_dfra(points, args.out)
    of_processes, link, size = measure_processes()
    draw_processes(of_processes, link, size, args.out)
    points += of_processes
    with open(args.out / 'results.csv', 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(Point._fields)
        rows.writerows((*p[:3], f'{p.measured:.5f}', f'{p.predicted:.5f}') for p in points)
    for sweep in (*SWEEPS, 'processes'):
        line = [p for p in points if p.sweep == sweep]
        for form in dict.fromkeys(point.form for point in line):
            ratios = [p.measured / p.predicted for p in line if p.form == form]
            print(f'{sweep}, {form}: measured / model {min(ratios):.2f} ... {max(ratios):.2f}')


if __name__ == '__main__':
    main()
