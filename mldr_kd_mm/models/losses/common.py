"""What the losses share: their precision, the checks of their arguments, forms of labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import Tensor

from mldr_kd_mm.utils.errors import ConfigError, is_number


def full_precision(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a loss's ``forward(self, student, teacher, ...)``.

    Under autocast half precision would overflow in products and powers of logits, so that autocast
    is off inside, and half-precision tensors come in as float32. The teacher's carry no gradient.
    """

    @functools.wraps(forward)
    def wrapped(self: Any, student: Tensor, teacher: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
            return forward(self, student, teacher, *args, **kwargs)

    return wrapped


def at_least_float32(tensor: Tensor) -> Tensor:
    """Bring half precision to float32, and leave float64 as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# torch.compile breaks its graph here and goes on after it.
@torch.compiler.disable
def gather_batch(tensors: Sequence[Tensor], dim: int = 0) -> list[Tensor]:
    """Join the batches of all processes, in the order of their ranks; all must call it.

    Where each process computes the same loss of the joined batch, the parameters' gradient that
    DistributedDataParallel averages over the processes is that of one process on that batch.

    Args:
        tensors: Of the same samples; the batch may have another size in another process.
        dim: The dimension of the batch.

    Returns:
        As many tensors; alone they are what came in.
    """
    if dist.get_world_size() == 1:
        return list(tensors)
    # On a GPU the host waits for the sizes: without them it cannot make the joined tensors.
    own = torch.tensor([tensors[0].shape[dim]], device=tensors[0].device)
    sizes = torch.cat(dist.all_gather(own)).tolist()
    return [_Gather.apply(tensor, dim, sizes) for tensor in tensors]


class _Gather(torch.autograd.Function):
    """What :func:`gather_batch` does with one tensor, and its gradient."""

    @staticmethod
    def forward(ctx, tensor: Tensor, dim: int, sizes: list[int]) -> Tensor:
        rank = dist.get_rank()
        ctx.dim, ctx.start, ctx.size = dim, sum(sizes[:rank]), sizes[rank]
        ctx.world_size = len(sizes)
        rows = tensor.movedim(dim, 0)
        # A collective wants the same shape of all.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        joined = [part[:size] for part, size in zip(dist.all_gather(padded), sizes, strict=True)]
        return torch.cat(joined).movedim(0, dim)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        # The mean over the processes divides by their number, but each row is in one of them only.
        return ctx.world_size * gradient.narrow(ctx.dim, ctx.start, ctx.size), None, None


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Check that logits can be compared.

    Raises:
        ConfigError: Unless they are (B, C) or (K, B, C) of the student, and (B, C) of the teacher.
    """
    if student.dim() not in (2, 3) or student.shape[-2:] != teacher.shape:
        raise ConfigError(
            f'logits: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: '
            'must be (B, C) or (K, B, C) for the student and (B, C) for the teacher'
        )


def check_features(student: Tensor, teacher: Tensor) -> None:
    """Check that features are vectors of the same samples.

    Raises:
        ConfigError: Unless they are (B, D_s) of the student and (B, D_t) of the teacher.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ConfigError(
            f'features: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: '
            'must be (B, D) for both'
        )


def check_widths(student_width: int | None, teacher_width: int | None) -> None:
    """Check the widths that a loss's own layers are made for.

    Raises:
        ConfigError: If one is missing or not positive.
    """
    for field, width in (('student_width', student_width), ('teacher_width', teacher_width)):
        if not is_number(width, int) or width < 1:
            raise ConfigError(
                f'{field}={width!r}: must be the width of the feature '
                '(inside a Distiller it is found)'
            )


def kl_div(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of the softmax over the last dimension: (..., M) -> (...)."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def standardize(logits: Tensor) -> Tensor:
    """Bring each sample's logits to mean 0 and (unbiased) standard deviation 1: (..., C).

    Source: Logit Standardization in Knowledge Distillation (arXiv 2403.01427). Where the deviation
    is less than 0.01, as from a head that starts at zero, 0.01 takes its place: the gradient grows
    with its inverse.
    """
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (logits.std(-1, keepdim=True).clamp_min(0.01) + 1e-7)


def class_of(target: Tensor, logits: Tensor) -> Tensor:
    """The class of each sample: labels (B,), or of soft labels (B, C) the largest -> (B,).

    Args:
        target: The labels.
        logits: What they are the labels of, (B, C).

    Raises:
        ConfigError: If a label is outside the classes (looked at on the CPU alone, since a look at
            a GPU's would make every step wait for it), or the shapes do not fit.
    """
    _check_target(target, *logits.shape)
    return target if target.dim() == 1 else target.argmax(-1)


def probability_of(target: Tensor, logits: Tensor) -> Tensor:
    """Labels as a distribution: (B,) or (B, C) -> (B, C).

    Args and errors are those of :func:`class_of`.
    """
    _check_target(target, *logits.shape)
    return F.one_hot(target, logits.shape[1]) if target.dim() == 1 else target


def _check_target(target: Tensor, batch: int, num_classes: int) -> None:
    if target.shape == (batch, num_classes):
        return
    if target.shape != (batch,):
        raise ConfigError(
            f'target: has the shape {tuple(target.shape)}: must be labels ({batch},) or soft '
            f'labels ({batch}, {num_classes})'
        )
    if target.device.type == 'cpu' and not ((target >= 0) & (target < num_classes)).all():
        raise ConfigError(f'target={target.tolist()}: must be within 0..{num_classes - 1}')
