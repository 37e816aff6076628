"""Count the kernel launches and host waits of a training step, without a GPU.

python benchmarks/launches.py

The steps run on the pretended GPU of the tests (tests/gpu/pretended.py): the real Runner with its
hooks, two images of the real size, random weights. The step that is counted is not one that logs.
The floor is the time in which the host launches the kernels at 5 us each; a GPU cannot be faster.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from mmengine.registry import init_default_scope

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tests/gpu'))

from pretended import PretendedGPU, Step  # noqa: E402
from pretended_run import PARTS, run_steps  # noqa: E402

from mldr_kd_mm.apis.configs import load_config  # noqa: E402
from mldr_kd_mm.registry import MODELS  # noqa: E402

LAUNCH = 5e-3  # milliseconds
# Rows of the table: config and method.
RUNS = {
    'MobileNetV2 32 px alone': ('scratch/mobilenet_c100_32px.py', None),
    '+ KD': ('pairs/deit_to_mobilenet_c100_32px.py', 'kd'),
    '+ MLDR-KD, live teacher': ('mldr/deit_to_mobilenet_c100_32px.py', None),
    'DeiT-T alone': ('scratch/deit-tiny_c100.py', None),
    'DeiT-T <- ConvNeXt-T, MLDR-KD': ('mldr/convnext-tiny_to_deit-tiny_c100.py', None),
    'Vim-T alone, without mamba-ssm': ('scratch/vim-tiny_c100.py', None),
}
# Rows without a Runner: heads, batch and classes of DFRA.
LOSSES = {
    'DFRA, C=100, K=6, B=128': (6, 128, 100),
    'DFRA, C=1000, K=6, B=128': (6, 128, 1000),
}


def count_run(config: str, method: str | None) -> Step:
    """Return what the second step of a run does."""
    cfg = load_config(str(ROOT / 'configs' / config), method)
    with tempfile.TemporaryDirectory() as folder, PretendedGPU(PARTS) as gpu:
        return run_steps(cfg, gpu, Path(folder, Path(folder).name), steps=2)[-1]


def count_loss(heads: int, batch: int, classes: int) -> Step:
    """Return what DFRA's forward and backward pass do."""
    with PretendedGPU(PARTS) as gpu:
        student = torch.randn(heads, batch, classes, device='cuda', requires_grad=True)
        teacher = torch.randn(batch, classes, device='cuda')
        loss = MODELS.build(dict(type='DFRALoss'))
        gpu.start_step()
        loss(student, teacher).sum().backward()
        return gpu.step


def describe(name: str, step: Step) -> str:
    """Return a row of the table."""
    launches = step.launches.total()
    parts = ', '.join(f'{part} {count:,}' for part, count in step.launches.most_common())
    parts = parts.replace('rest', 'student')
    cells = (
        name,
        f'{launches:,}',
        f'{launches * LAUNCH:,.1f} ms',
        f'{step.waits.total()}',
        f'{step.moved / 1e9:.1f} GB' if name in LOSSES else parts,
    )
    return '| ' + ' | '.join(cells) + ' |'


def main() -> None:
    """Print the table, and where the host waits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('rows', nargs='*', help='count only rows whose name contains one of these')
    args = parser.parse_args()
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    init_default_scope('mldr_kd_mm')
    steps = {}
    print('| per training step | launches | floor at 5 us | host waits | launches of its parts |')
    print('|---|--:|--:|--:|---|')
    for name, (count, row) in (
        *((name, (count_run, row)) for name, row in RUNS.items()),
        *((name, (count_loss, row)) for name, row in LOSSES.items()),
    ):
        if args.rows and not any(part in name for part in args.rows):
            continue
        steps[name] = count(*row)
        print(describe(name, steps[name]), flush=True)
    print()
    for name, step in steps.items():
        for wait, times in step.waits.items():
            print(f'{name}: {times} x {wait}')


if __name__ == '__main__':
    main()
