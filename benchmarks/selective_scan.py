"""Measure time and memory of the selective scan on the CPU against a loop with autograd.

python benchmarks/selective_scan.py

The default shape is one direction of a layer of the small Vision Mamba at batch size 8. The two
implementations alternate in one run, so that other load on the machine slows both.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mldr_kd_mm.models.backbones.selective_scan import selective_scan

TARGET_MS, TARGET_RATIO = 300, 6
Scan = Callable[..., Tensor]


def plain_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """Compute ``selective_scan`` as a time-major loop that autograd differentiates."""
    u, delta, B, C, gate = (x.permute(2, 0, 1).contiguous() for x in (u, delta, B, C, z))
    delta = F.softplus(delta + bias)
    du, A = delta * u, A.T.contiguous()
    state, outputs = u.new_zeros(u.shape[1], *A.shape), []
    # Unbind once, since the gradient of indexing is as large as the whole tensor at each step.
    for d, x, b, c in zip(delta.unbind(), du.unbind(), B.unbind(), C.unbind(), strict=True):
        state = torch.exp(d[:, None] * A) * state + x[:, None] * b[..., None]
        outputs.append(torch.bmm(c[:, None], state).squeeze(1))
    return ((torch.stack(outputs) + D * u) * F.silu(gate)).permute(1, 2, 0)


def make_inputs(batch: int, length: int, width: int, states: int) -> list[Tensor]:
    """Return random arguments of the scan with the step sizes of an untrained Vision Mamba."""
    torch.manual_seed(0)
    sequence, weights = (batch, width, length), (batch, states, length)
    rates = -torch.arange(1.0, states + 1).repeat(width, 1)
    inputs = [torch.randn(sequence), torch.randn(sequence), rates]
    inputs += [torch.randn(weights), torch.randn(weights), torch.ones(width), torch.randn(sequence)]
    inputs.append(torch.full((width,), -4.6))
    return [x.requires_grad_() for x in inputs]


def milliseconds(scan: Scan, inputs: list[Tensor]) -> float:
    """Measure one forward and backward pass."""
    start = time.perf_counter()
    torch.autograd.grad(scan(*inputs).sum(), inputs)
    return 1e3 * (time.perf_counter() - start)


def saved_bytes(scan: Scan, inputs: list[Tensor]) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, inputs included."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = scan(*inputs)  # kept alive, so that no address is reused before the sum
    total = sum(storages.values())
    del y
    return total


def main() -> None:
    """Print the results of both scans and the targets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (('batch', 8), ('length', 197), ('width', 768), ('states', 16)):
        parser.add_argument(f'--{name}', type=int, default=default)
    parser.add_argument('--repeats', type=int, default=7, help='at least 5 for a fair median')
    args = parser.parse_args()

    inputs = make_inputs(args.batch, args.length, args.width, args.states)
    scans = {'selective_scan': selective_scan, 'autograd loop': plain_scan}
    for scan in scans.values():
        milliseconds(scan, inputs)  # warm-up
    times = {name: [] for name in scans}
    for _ in range(args.repeats):
        for name, scan in scans.items():
            times[name].append(milliseconds(scan, inputs))
    saved = {name: saved_bytes(scan, inputs) for name, scan in scans.items()}

    print(
        f'{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, '
        f'{torch.get_num_threads()} threads; b {args.batch}, L {args.length}, E {args.width}, '
        f'N {args.states}; {args.repeats} repeats'
    )
    print(f'{"":16}{"median ms":>12}{"least ms":>12}{"saved MiB":>12}')
    for name in scans:
        median, least = statistics.median(times[name]), min(times[name])
        print(f'{name:16}{median:12.1f}{least:12.1f}{saved[name] / 2**20:12.1f}')
    ours, loop = (statistics.median(times[name]) for name in scans)
    ratio = saved['autograd loop'] / saved['selective_scan']
    print(
        f'selective scan, time: {ours:.0f} ms, target <= {TARGET_MS} ms; '
        f'the loop takes {loop / ours:.2f}x'
    )
    print(f'selective scan, memory: {ratio:.1f}x less, target >= {TARGET_RATIO}x')


if __name__ == '__main__':
    main()
