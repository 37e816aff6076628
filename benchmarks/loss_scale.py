"""Measure how the gradient of each method's loss depends on the size of what it compares.

python benchmarks/loss_scale.py

The student's tensor is random and is scaled by powers of ten; the teacher's keeps its size. The
table has the gradient's norm times the square root of the batch size, which is at most 1.4 for
cross-entropy on logits. A gradient that grows with the scale makes a diverging student diverge
faster; one that falls or stays constant does not.
"""

from __future__ import annotations

import argparse
import inspect

import torch
from mmengine.registry import init_default_scope

from mldr_kd_mm.apis.configs import METHODS, find_config, read_config
from mldr_kd_mm.models.builder import build_for

SCALES = (0.1, 1.0, 10.0, 100.0, 1000.0)
ON_LOGITS = ('mldr_paper', 'mldr', 'mldr_ls', 'kd', 'kd_t4', 'dkd', 'dist', 'ls', 'ofa')
ON_FEATURES = ('rkd', 'cc', 'crd', 'rsd', 'fitnet')


def gradients(config: dict, batch: int, width: int) -> list[float]:
    """Return the norm of the gradient at each scale, times the square root of the batch size."""
    torch.manual_seed(0)
    if config['type'] == 'CRDLoss':
        config = dict(config, num_samples=1000, negatives=128)
    shape = (batch, width, 4, 4) if config['type'] == 'FitNetLoss' else (batch, width)
    found = dict(student_width=width, teacher_width=width, student_grid=None, teacher_grid=None)
    loss = build_for(config, found).train()
    student, teacher = torch.randn(shape), 2 * torch.randn(shape)
    labels = dict(target=torch.randint(0, width, (batch,)), index=torch.arange(batch))
    taken = {
        name: labels[name] for name in inspect.signature(loss.forward).parameters.keys() & labels
    }
    norms = []
    for scale in SCALES:
        tensor = (scale * student).requires_grad_()
        (gradient,) = torch.autograd.grad(loss(tensor, teacher, **taken), tensor)
        norms.append(gradient.norm().item() * batch**0.5)
    return norms


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch-size', type=int, default=32)
    args = parser.parse_args()
    init_default_scope('mldr_kd_mm')
    print(f'| Method | Compares | {" | ".join(f"{scale:g}" for scale in SCALES)} |')
    print(f'| {" | ".join([":-"] * 2 + ["-:"] * len(SCALES))} |')
    for names, kind, widths in (
        (ON_LOGITS, 'logits of {} classes', (2, 100)),
        (ON_FEATURES, 'features of width {}', (256,)),
    ):
        for name in names:
            config = read_config(find_config(METHODS, name, 'method')).method.losses[0].to_dict()
            for width in widths:
                norms = gradients(config['loss'], args.batch_size, width)
                cells = ' | '.join(f'{norm * config.get("weight", 1.0):.2g}' for norm in norms)
                print(f'| `{name}` | {kind.format(width)} | {cells} |')


if __name__ == '__main__':
    main()
