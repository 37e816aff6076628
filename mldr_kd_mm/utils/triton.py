"""Find out whether Triton kernels run on a device."""

from __future__ import annotations

import functools
import os
import warnings

import torch


@torch.compiler.assume_constant_result
def triton_runs(device_type: str) -> bool:
    """Return whether Triton kernels run on devices of a type, such as ``'cuda'``.

    A small kernel is compiled and run on the GPU once per process, since Triton also needs a C
    compiler and Python's headers. If that fails, a warning says why. On the CPU kernels only run in
    Triton's interpreter, with ``TRITON_INTERPRET=1`` in the environment.
    """
    return _runs(device_type)


@functools.cache
def _runs(device_type: str) -> bool:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return False
    if device_type == 'cpu':
        return os.environ.get('TRITON_INTERPRET') == '1'

    @triton.jit
    def add_one(x):
        tl.store(x, tl.load(x) + 1)

    try:
        add_one[(1,)](torch.zeros(1, device=device_type))
    except Exception as error:
        reason = ' '.join(str(error).split())
        warnings.warn(f'Triton does not run: {reason}; slower kernels replace it', stacklevel=3)
        return False
    return True
