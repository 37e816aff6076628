"""Helpers of the losses: precision, gathering over processes, argument checks and labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import Tensor
from torch.distributed import ProcessGroup

from mldr_kd_mm.utils.device import float32_products
from mldr_kd_mm.utils.errors import ConfigError, is_number


def full_precision(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorate a loss's ``forward(self, student, teacher, ...)`` to compute in float32 or float64.

    Products and powers of logits would overflow in half precision. Therefore autocast is off inside
    and half-precision tensors are converted to float32. TF32 is off inside and in the backward pass
    of the loss, unless it is compiled. The teacher's tensor is detached.
    """

    @functools.wraps(forward)
    def wrapped(self: Any, student: Tensor, teacher: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        device = student.device
        student, teacher = at_least_float32(student), at_least_float32(teacher.detach())
        student = student.view_as(student)  # gives this loss a node of its own to hook
        with torch.autocast(device.type, enabled=False), float32_products(device, 'highest'):
            loss = forward(self, student, teacher, *args, **kwargs)
        if device.type == 'cuda' and not torch.compiler.is_compiling():
            parts = loss.values() if isinstance(loss, dict) else [loss]
            _keep_float32_products(student, parts, device)
        return loss

    return wrapped


def _keep_float32_products(student: Tensor, loss: Iterable[Tensor], device: torch.device) -> None:
    """Switch TF32 off in the backward pass from the parts of a loss to the student's tensor."""
    if student.grad_fn is None:
        return
    # The hooks must not refer to tensors of the graph, which would then never be freed.
    context = ExitStack()

    def enter(_: Any) -> None:
        context.enter_context(float32_products(device, 'highest'))

    # Of the nodes that are ready, autograd takes the one that was made last. So it reaches the
    # student's tensor before it starts with another loss.
    for part in loss:
        if part.grad_fn is not None:
            part.grad_fn.register_prehook(enter)
    student.grad_fn.register_prehook(lambda _: context.close())


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32 and keep float32 and float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


# torch.compile breaks the graph here and continues after it.
@torch.compiler.disable
def gather_batch(tensors: Sequence[Tensor], dim: int = 0) -> list[Tensor]:
    """Concatenate the batches of all processes in the order of their ranks.

    All processes must call it. If each computes the same loss of the joined batch, the gradient
    that DistributedDataParallel averages equals that of one process on the joined batch.

    Args:
        tensors: Tensors of the same samples. Batch sizes may differ between processes.
        dim: The batch dimension.

    Returns:
        The joined tensors. A single process returns its own.
    """
    if dist.get_world_size() == 1:
        return list(tensors)
    sizes = _gather_sizes(tensors[0].shape[dim])
    return [_Gather.apply(tensor, dim, sizes) for tensor in tensors]


def _gather_sizes(size: int) -> list[int]:
    """Return the batch size of each process, which all need to allocate the joined tensors.

    The processes exchange it on the host, so that none waits for its GPU.
    """
    group = dist.get_default_group()
    if dist.get_backend(group) != 'gloo':
        group = _host_group(group)
    sizes = [torch.empty(1, dtype=torch.long) for _ in range(dist.get_world_size())]
    torch.distributed.all_gather(sizes, torch.tensor([size]), group)
    return torch.cat(sizes).tolist()


@functools.cache
def _host_group(_: ProcessGroup) -> ProcessGroup:
    """Return a group of all processes that communicates over the host, one per default group."""
    return torch.distributed.new_group(backend='gloo')


class _Gather(torch.autograd.Function):
    """:func:`gather_batch` of one tensor, with its gradient."""

    @staticmethod
    def forward(ctx, tensor: Tensor, dim: int, sizes: list[int]) -> Tensor:
        rank = dist.get_rank()
        ctx.dim, ctx.start, ctx.size = dim, sum(sizes[:rank]), sizes[rank]
        ctx.world_size = len(sizes)
        rows = tensor.movedim(dim, 0)
        # A collective needs the same shape on all ranks.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        joined = [part[:size] for part, size in zip(dist.all_gather(padded), sizes, strict=True)]
        return torch.cat(joined).movedim(0, dim)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        # DDP divides the sum over processes by their number, but each row is in one process only.
        return ctx.world_size * gradient.narrow(ctx.dim, ctx.start, ctx.size), None, None


def check_logits(student: Tensor, teacher: Tensor) -> None:
    """Check the shapes of logits.

    Raises:
        ConfigError: If they are not (B, C) or (K, B, C) for the student and (B, C) for the teacher.
    """
    if student.dim() not in (2, 3) or student.shape[-2:] != teacher.shape:
        raise ConfigError(
            f'logits: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: '
            'must be (B, C) or (K, B, C) for the student and (B, C) for the teacher'
        )


def check_features(student: Tensor, teacher: Tensor) -> None:
    """Check the shapes of feature vectors.

    Raises:
        ConfigError: If they are not (B, D_s) for the student and (B, D_t) for the teacher.
    """
    if student.dim() != 2 or teacher.dim() != 2 or len(student) != len(teacher):
        raise ConfigError(
            f'features: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}: '
            'must be (B, D) for both, with equal B'
        )


def check_widths(student_width: int | None, teacher_width: int | None) -> None:
    """Check the widths of a loss's own layers.

    Raises:
        ConfigError: If a width is missing or not positive.
    """
    for field, width in (('student_width', student_width), ('teacher_width', teacher_width)):
        if not is_number(width, int) or width < 1:
            raise ConfigError(
                f'{field}={width!r}: must be the width of the feature (a Distiller sets it)'
            )


def kl_div(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute KL(teacher || student) of softmax over the last dimension: (..., M) -> (...)."""
    log_q, log_p = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def standardize(logits: Tensor) -> Tensor:
    """Standardise each sample's logits (..., C) to mean 0 and (unbiased) standard deviation 1.

    A deviation below 0.01, as from a head that starts at zero, is replaced by 0.01, since the
    gradient grows with its inverse. The authors' code has no such bound.

    Source: Logit Standardization in Knowledge Distillation (arXiv 2403.01427).
    """
    centred = logits - logits.mean(-1, keepdim=True)
    return centred / (logits.std(-1, keepdim=True).clamp_min(0.01) + 1e-7)


def drop_class(logits: Tensor, classes: Tensor) -> Tensor:
    """Leave one class of each sample out of its logits.

    Its column is not masked with a large number instead, which would not fit into every dtype.

    Args:
        logits: (..., B, C).
        classes: The class of each sample (B,).

    Returns:
        The other classes' logits (..., B, C - 1), in their order.
    """
    columns = torch.arange(logits.shape[-1] - 1, device=logits.device)
    columns = columns + (columns >= classes.unsqueeze(-1))
    return logits.gather(-1, columns.expand(*logits.shape[:-1], -1))


def class_of(target: Tensor, logits: Tensor) -> Tensor:
    """Return the class of each sample (B,).

    Args:
        target: Labels (B,), or soft labels (B, C), of which the largest is used.
        logits: Logits of the same samples (B, C).

    Raises:
        ConfigError: If the shapes do not fit, or a label is out of range. The range is only checked
            on the CPU: on a GPU the check would make every step wait.
    """
    batch, num_classes = logits.shape
    if target.shape == (batch, num_classes):
        return target.argmax(-1)
    if target.shape != (batch,):
        raise ConfigError(
            f'target: has shape {tuple(target.shape)}; must be labels ({batch},) or soft labels '
            f'({batch}, {num_classes})'
        )
    if target.device.type == 'cpu' and not ((target >= 0) & (target < num_classes)).all():
        raise ConfigError(f'target={target.tolist()}: must be within 0..{num_classes - 1}')
    return target
