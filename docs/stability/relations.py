"""Train a config, and print how large the relations of teacher and heads become.

python docs/stability/relations.py CONFIG [arguments of tools/train.py]
"""

import atexit
import functools
import runpy
from pathlib import Path

import torch

from mldr_kd_mm import DFRALoss

steps: list[tuple[float, float]] = []  # of the teacher, and the largest of a head
forward = DFRALoss.forward


@functools.wraps(forward)
def recorded(self, student, teacher, *args, **kwargs):
    """Compute the loss, and record the root mean square of the relations in a training step."""
    if torch.is_grad_enabled():
        kappa = teacher.shape[-1] ** -0.5
        sizes = (kappa * z.detach().square().mean((-2, -1)) for z in (teacher, student))
        steps.append(tuple(size.max().item() for size in sizes))
    return forward(self, student, teacher, *args, **kwargs)


def report() -> None:
    """Print the largest values of all steps."""
    of_teacher = max(teacher for teacher, _ in steps)
    relative = max(head / teacher for teacher, head in steps)
    print(f'{len(steps)} steps: teacher {of_teacher:.2f}, head / teacher {relative:.2f}')


DFRALoss.forward = recorded
atexit.register(report)
runpy.run_path(str(Path(__file__).parents[2] / 'tools/train.py'), run_name='__main__')
