"""Measure time, memory and error of the DFRA loss against a straightforward implementation.

python benchmarks/dfra.py

Six student heads, as in MLDR-KD, forward and backward, float32, one thread. The straightforward
implementation builds the relation matrices of each head and of the teacher and uses autograd. Both
alternate in one run, so that other load on the machine slows both. Time is CPU time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mldr_kd_mm.models.losses import DFRALoss
from mldr_kd_mm.models.losses import relation as forms

HEADS = 6
# (samples, classes) -> target speed-up.
TARGETS = {(128, 100): 10, (64, 400): 15, (32, 1000): 50}
MEMORY_SHAPE, MEMORY_RATIO = (64, 400), 30
LARGE_SHAPE, LARGE_GIB = (128, 21841), 2
Loss = Callable[[Tensor, Tensor], Tensor]


def written_out(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the relation terms (K,) of heads (K, B, C), computed by their definition."""
    kappa = student.shape[-1] ** -0.5

    def relation(rows: Tensor) -> Tensor:
        return (kappa * rows.unsqueeze(-1) * rows.unsqueeze(-2)).log_softmax(-2)

    def kl(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = relation(student), relation(teacher)
        return (log_p.exp() * (log_p - log_q)).sum(-2).mean()

    return torch.stack([kl(head, teacher) + kl(head.mT, teacher.mT) for head in student])


def make_logits(batch: int, classes: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """Return logits of student heads (K, B, C) and of a teacher (B, C)."""
    torch.manual_seed(0)
    student = spread * torch.randn(HEADS, batch, classes)
    return student, spread * torch.randn(batch, classes)


def step(loss: Loss, student: Tensor, teacher: Tensor) -> tuple[float, Tensor, Tensor]:
    """Run one forward and backward pass; return CPU seconds, loss values and the gradient."""
    student = student.clone().requires_grad_()
    start = time.process_time()
    values = loss(student, teacher)
    values.sum().backward()
    return time.process_time() - start, values.detach(), student.grad


def error(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return ((actual.double() - expected).abs().max() / expected.abs().max()).item()


def compare(batch: int, classes: int, repeats: int) -> float:
    """Print the results for a shape; return the speed-up."""
    student, teacher = make_logits(batch, classes)
    sides: dict[str, Loss] = {
        'written out': written_out,
        'dense': DFRALoss(alpha=0, relation='dense'),
        'auto': DFRALoss(alpha=0),
    }
    exact = step(DFRALoss(alpha=0, relation='dense'), student.double(), teacher.double())[1:]
    seconds = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, loss in sides.items():
            took, *result = step(loss, student, teacher)
            if repeat:  # the first one is the warm-up
                seconds[name].append(took)
            elif classes <= 1000:
                of_value, of_gradient = map(error, result, exact)
                print(f'  {name:12} error of value {of_value:.0e}, of gradient {of_gradient:.0e}')
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    print('  ' + ', '.join(f'{name} {value:.1f} ms' for name, value in medians.items()))
    return medians['written out'] / medians['auto']


def peak_gib(side: str, batch: int, classes: int) -> float:
    """Measure the peak memory of a step in a separate process, without its inputs."""
    command = [sys.executable, __file__, '--peak-of', side, str(batch), str(classes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_peak(side: str, batch: int, classes: int) -> None:
    """Print the peak memory of a step, in that process; Linux only."""
    loss = {'written out': written_out, 'auto': DFRALoss(alpha=0)}[side]
    step(loss, *make_logits(2, 40))  # triggers lazy imports and initialisation
    student, teacher = make_logits(batch, classes)
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = resident_gib('VmRSS')
    step(loss, student, teacher)
    print(resident_gib('VmHWM') - before)


def resident_gib(field: str) -> float:
    """Return the current (``VmRSS``) or peak (``VmHWM``) resident memory of the process."""
    status = Path('/proc/self/status').read_text().split()
    return int(status[status.index(f'{field}:') + 1]) / 2**20


def main() -> None:
    """Print the results for all shapes and the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--repeats', type=int, default=5, help='at least 5 for a fair median')
    parser.add_argument('--peak-of', nargs=3, metavar=('SIDE', 'B', 'C'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak_of:
        side, *shape = args.peak_of
        print_peak(side, *map(int, shape))
        return

    kernel = 'with' if forms._kernel() else 'without'
    print(
        f'{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, 1 thread, '
        f'{kernel} the C kernel; {args.repeats} repeats'
    )
    for (batch, classes), target in TARGETS.items():
        print(f'B={batch}, C={classes}')
        ratio = compare(batch, classes, args.repeats)
        print(f'DFRA at B={batch}, C={classes}: {ratio:.1f}x, target >= {target}x')
    full, ours = (peak_gib(side, *MEMORY_SHAPE) for side in ('written out', 'auto'))
    print(
        'DFRA, memory at B={}, C={}: '.format(*MEMORY_SHAPE)
        + f'{full:.2f} GiB / {ours:.3f} GiB = {full / ours:.0f}x less, target >= {MEMORY_RATIO}x'
    )
    large = peak_gib('auto', *LARGE_SHAPE)
    print(
        'DFRA, memory at B={}, C={}: '.format(*LARGE_SHAPE)
        + f'{large:.2f} GiB, target < {LARGE_GIB} GiB'
    )


if __name__ == '__main__':
    main()
