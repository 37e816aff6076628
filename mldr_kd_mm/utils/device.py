"""Copies for which the host does not wait, and the precision of matrix products on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device without waiting for a GPU.

    Args:
        tensor: The tensor. One on the CPU is copied into page-locked memory first, from which a GPU
            reads it when its queue gets there.
        device: The device.
    """
    if device.type == 'cuda' and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def float32_products(device: torch.device, precision: str) -> AbstractContextManager:
    """Return a context with another precision of float32 matrix products on a GPU.

    Args:
        device: The device that computes. On the CPU nothing changes, nor in code that
            ``torch.compile`` compiles, which would break its graph here.
        precision: ``highest``: float32. ``high``: TF32, on GPUs that have it, unless the products
            are less precise already. A precision that was set by ``torch.backends`` is kept.
    """
    if device.type != 'cuda' or torch.compiler.is_compiling():
        return nullcontext()
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # It was set by torch.backends, which is not to be mixed with this.
        return nullcontext()
    if before == precision or (precision == 'high' and before == 'medium'):
        return nullcontext()
    return _float32_products(before, precision)


@contextmanager
def _float32_products(before: str, precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
