"""The selective scan, Mamba's recurrence: in PyTorch, in Triton or with mamba-ssm's kernel."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mldr_kd_mm.utils.triton import triton_runs


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    r"""Scan a sequence of length L in one direction, with batch size b, width E and state size N.

    For each sample and each of the E channels, with
    :math:`\Delta = \mathrm{softplus}(\mathtt{delta} + \mathtt{delta\_bias})`:

    .. math::
        s_t = \exp(\Delta_t A) s_{t-1} + \Delta_t u_t B_t, \quad
        y_t = (C_t \cdot s_t + D u_t) \cdot \mathrm{silu}(z_t)

    On a GPU with mamba-ssm installed, its kernel runs, and without it, Triton kernels. Where Triton
    does not run either, as on the CPU, a loop over time runs in PyTorch. Triton and the loop
    compute in float32 or float64. Their backward pass recomputes the states and only keeps one in
    about :math:`\sqrt{L}`; a second derivative raises a RuntimeError. ``torch.export``, whose graph
    would contain every step of the loop, gets a scan of :math:`\log_2 L` steps over all times.

    Source: Mamba (arXiv 2312.00752), algorithm 2. The arguments are those of mamba-ssm's
    ``selective_scan_fn`` with ``delta_softplus=True``.

    Args:
        u: Sequence, (b, E, L).
        delta: Step sizes before bias and softplus, (b, E, L).
        A: Logarithmic decay, negative, (E, N).
        B: Input weights, (b, N, L).
        C: Output weights, (b, N, L).
        D: Weights of the skip connection, (E,).
        z: Gate, (b, E, L).
        delta_bias: Bias of ``delta``, (E,).

    Returns:
        The output y, (b, E, L), with the dtype of ``u``.
    """
    # Both torch.compile and torch.export count as compiling; only torch.export runs without dynamo.
    if torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling():
        return _parallel_scan(u, delta, A, B, C, D, z, delta_bias)
    # mamba-ssm's kernel has no float64.
    if u.is_cuda and u.dtype != torch.float64 and _has_mamba_kernel():
        delta, B, C, z = (tensor.to(u.dtype) for tensor in (delta, B, C, z))
        A, D, delta_bias = A.float(), D.float(), delta_bias.float()
        return mamba_kernel()(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)
    scan = _triton_scan if u.is_cuda and triton_runs('cuda') else _SelectiveScan.apply
    return scan(u, delta, A, B, C, D, z, delta_bias)


def _triton_scan(*inputs: Tensor) -> Tensor:
    from mldr_kd_mm.models.backbones.selective_scan_triton import triton_scan

    return triton_scan(*inputs)[0]


@torch.compiler.assume_constant_result
def _has_mamba_kernel() -> bool:
    return mamba_kernel() is not None


@functools.cache
def mamba_kernel() -> Callable[..., Tensor] | None:
    """Return mamba-ssm's ``selective_scan_fn``, or None if it does not import.

    A warning says so if it is installed, or if only the slow loop remains. Only call it where there
    is a GPU: mamba-ssm does not import without one.
    """
    try:
        # The Python part imports even if its binary is missing.
        import selective_scan_cuda  # noqa: F401
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    # A binary for another torch or CUDA raises OSError or RuntimeError.
    except (ImportError, OSError, RuntimeError) as error:
        if not isinstance(error, ModuleNotFoundError) or not triton_runs('cuda'):
            instead = 'in Triton' if triton_runs('cuda') else 'in a loop over time, which is slow'
            warnings.warn(
                f'mamba-ssm does not import ({error}); the selective scan runs {instead}; with '
                "nvcc and torch < 2.14, run pip install --no-build-isolation 'mamba-ssm>=2.2,<2.4'",
                stacklevel=3,
            )
        return None
    return selective_scan_fn


def _parallel_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> Tensor:
    """Scan by doubling: after k rounds each state includes the last 2**k times.

    All states are in memory at once, (b, E, N, L).

    Source: Data parallel algorithms (Hillis and Steele, 1986).
    """
    delta = F.softplus(delta + bias.unsqueeze(1)).unsqueeze(2)
    decay = torch.exp(delta * A.unsqueeze(2))
    state = delta * u.unsqueeze(2) * B.unsqueeze(1)
    length, shift = u.shape[2], 1
    while shift < length:
        state = state + decay * F.pad(state[..., :-shift], (shift, 0))
        decay = decay * F.pad(decay[..., :-shift], (shift, 0))
        shift *= 2
    y = (state * C.unsqueeze(1)).sum(2)
    return (y + D.unsqueeze(1) * u) * F.silu(z)


class _SelectiveScan(torch.autograd.Function):
    """Loop over time, on time-major tensors (L, b, E) and a state (b, N, E).

    Each step works in place on one state, which stays in the CPU's cache. Slices of tensors with
    time as the last dimension, as in the usual reference loop, are far slower.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        with torch.autocast(inputs[0].device.type, enabled=False):
            y, starts = _forward(*_compute_dtype(inputs))
        ctx.save_for_backward(*inputs, starts)
        return y.to(inputs[0].dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        # `once_differentiable` would accept a constant gradient and lose the second derivative.
        if torch.is_grad_enabled():
            raise RuntimeError('selective_scan has no second derivative; do not use create_graph')
        *inputs, starts = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            grads = _backward(grad.to(starts.dtype), starts, *_compute_dtype(inputs))
        return tuple(grad.to(x.dtype) for grad, x in zip(grads, inputs, strict=True))


def _compute_dtype(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    dtype = torch.promote_types(inputs[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in inputs]


def _time_major(*tensors: Tensor) -> list[Tensor]:
    """Transpose (b, E, L) to contiguous (L, b, E)."""
    return [tensor.permute(2, 0, 1).contiguous() for tensor in tensors]


def _chunk_length(length: int) -> int:
    """Return the number of steps per saved state, a balance of memory and recomputation."""
    return max(1, math.isqrt(length))


def _step(
    state: Tensor, decay: Tensor, delta: Tensor, du: Tensor, b: Tensor, A: Tensor, out: Tensor
):
    """Write the state after ``state`` to ``out`` and its decay to ``decay``, all (b, N, E)."""
    torch.mul(delta.unsqueeze(1), A, out=decay).exp_()
    torch.mul(state, decay, out=out).addcmul_(du.unsqueeze(1), b.unsqueeze(2))


def _forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output, and the states before each chunk of steps, (chunks, b, N, E)."""
    u, delta, B, C, z = _time_major(u, delta, B, C, z)
    delta = F.softplus(delta + bias)
    du, A = delta * u, A.T.contiguous()
    (length, batch, width), chunk = u.shape, _chunk_length(len(u))
    starts = u.new_empty(math.ceil(length / chunk), batch, len(A), width)
    state = u.new_zeros(starts.shape[1:])
    decay, y = torch.empty_like(state), torch.empty_like(u)
    for t in range(length):
        if t % chunk == 0:
            starts[t // chunk] = state
        _step(state, decay, delta[t], du[t], B[t], A, out=state)
        torch.bmm(C[t].unsqueeze(1), state, out=y[t].unsqueeze(1))
    y.addcmul_(D, u).mul_(F.silu(z))
    return y.permute(1, 2, 0), starts


def _backward(
    grad: Tensor,
    starts: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    bias: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of the arguments of ``_forward``."""
    grad, u, delta, B, C, z = _time_major(grad, u, delta, B, C, z)
    gate, delta = torch.sigmoid(z), delta + bias
    # The slope of the softplus and its value.
    slope, delta = torch.sigmoid(delta), F.softplus(delta)
    grad_y = grad * gate * z
    y, grad_du, grad_delta, grad_A, grad_B, grad_C = _backward_loop(
        grad_y, starts, delta, delta * u, A.T.contiguous(), B, C
    )
    grad_z = grad * torch.addcmul(y, D, u) * gate * (1 + z * (1 - gate))
    grad_delta = grad_delta.addcmul_(grad_du, u).mul_(slope)
    grad_u = grad_du.mul_(delta).addcmul_(grad_y, D)
    grad_D, grad_bias = (grad_y * u).sum((0, 1)), grad_delta.sum((0, 1))
    grad_u, grad_delta, grad_B, grad_C, grad_z = (
        tensor.permute(1, 2, 0) for tensor in (grad_u, grad_delta, grad_B, grad_C, grad_z)
    )
    return grad_u, grad_delta, grad_A.T, grad_B, grad_C, grad_D, grad_z, grad_bias


def _backward_loop(
    grad_y: Tensor, starts: Tensor, delta: Tensor, du: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, ...]:
    """Differentiate y_t = C_t s_t.

    Returns:
        y again, and the gradients of du, of delta as it decays the state, and of A, B and C.
    """
    length, chunk = len(du), _chunk_length(len(du))
    y, grad_du, grad_delta = (torch.empty_like(du) for _ in range(3))
    grad_B, grad_C = torch.empty_like(B), torch.empty_like(C)
    # `grad` comes from the steps after t. `grad_A` is summed over the samples at the end.
    grad, grad_A = torch.zeros_like(starts[0]), torch.zeros_like(starts[0])
    product = torch.empty_like(grad)
    decays, states = grad.new_empty(chunk, *grad.shape), grad.new_empty(chunk + 1, *grad.shape)
    for i in reversed(range(len(starts))):
        times = range(i * chunk, min((i + 1) * chunk, length))
        states[0] = starts[i]
        for k, t in enumerate(times):
            _step(states[k], decays[k], delta[t], du[t], B[t], A, out=states[k + 1])
        for k, t in reversed(list(enumerate(times))):
            state, column = states[k + 1], grad_y[t].unsqueeze(1)
            torch.bmm(C[t].unsqueeze(1), state, out=y[t].unsqueeze(1))
            torch.sum(torch.mul(state, column, out=product), 2, out=grad_C[t])
            grad.addcmul_(column, C[t].unsqueeze(2))
            torch.bmm(B[t].unsqueeze(1), grad, out=grad_du[t].unsqueeze(1))
            torch.sum(torch.mul(grad, du[t].unsqueeze(1), out=product), 2, out=grad_B[t])
            grad.mul_(decays[k])
            torch.mul(grad, states[k], out=product)  # The gradient of delta_t * A.
            grad_A.addcmul_(product, delta[t].unsqueeze(1))
            torch.sum(product.mul_(A), 1, out=grad_delta[t])
    return y, grad_du, grad_delta, grad_A.sum(0), grad_B, grad_C
