"""Copies to a GPU for which the host does not wait."""

from __future__ import annotations

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
