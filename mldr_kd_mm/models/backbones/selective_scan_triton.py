"""The selective scan in Triton, for GPUs without mamba-ssm.

A program scans a few channels of a sample, with their states in registers. The forward pass keeps
one state in about sqrt(L); the backward pass computes those between them again, into a work space.
Tensors are read with their own strides, so that none is copied.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# Channels of a program, which is one warp.
CHANNELS = 16
_SIZES = ['width', 'length', 'num_states', 'chunk']


@torch.library.custom_op('mldr_kd_mm::selective_scan', mutates_args=())
def triton_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Scan a sequence; see :func:`~mldr_kd_mm.models.backbones.selective_scan.selective_scan`.

    Returns:
        The output (b, E, L), and the states before each chunk of steps (chunks, b, E, N).
    """
    y, starts = _results(u, A)
    (batch, width, length), num_states = u.shape, A.shape[1]
    with torch.cuda.device_of(u):
        _forward[(triton.cdiv(width, CHANNELS), batch)](
            *_with_strides(u, delta, z, y, B, C),
            *(*map(Tensor.contiguous, (A, D, bias)), starts),
            *(width, length, num_states, _chunk_length(length)),
            *(CHANNELS, triton.next_power_of_2(num_states)),
            num_warps=1,
        )
    return y, starts


@triton_scan.register_fake
def _(u, delta, A, B, C, D, z, bias):
    return _results(u, A)


def _results(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate the output, with neighbouring channels side by side, and the states."""
    batch, width, length = u.shape
    chunks = -(-length // _chunk_length(length))
    dtype = torch.promote_types(u.dtype, torch.float32)
    y = u.new_empty(batch, length, width).mT
    return y, u.new_empty(chunks, batch, width, A.shape[1], dtype=dtype)


def _chunk_length(length: int) -> int:
    """Return the number of steps per saved state, a balance of memory and recomputation."""
    return max(1, math.isqrt(length))


@torch.library.custom_op('mldr_kd_mm::selective_scan_backward', mutates_args=())
def _scan_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients.

    Returns:
        Those of u, delta and z (b, E, L); of B and C (2, b, L, N); and of A, D and the bias, side
        by side (E, N + 2).
    """
    gradients = _gradients(u, delta, z, starts)
    (batch, width, length), num_states = u.shape, A.shape[1]
    chunk, programs = _chunk_length(length), triton.cdiv(width, CHANNELS)
    states = starts.new_empty(batch, chunk, width, num_states)
    # Sums over the programs follow in a fixed order; atomic additions have none.
    of_times = starts.new_empty(2, programs, batch, length, num_states)
    of_channels = starts.new_empty(batch, width, num_states + 2)
    with torch.cuda.device_of(u):
        _backward[(programs, batch)](
            *_with_strides(u, delta, z, grad, *gradients, B, C),
            *(*map(Tensor.contiguous, (A, D, bias)), starts, states, of_times, of_channels),
            *(width, length, num_states, chunk),
            *(CHANNELS, triton.next_power_of_2(num_states)),
            num_warps=1,
        )
        return *gradients, of_times.sum(1), of_channels.sum(0)


@_scan_backward.register_fake
def _(grad, starts, u, delta, A, B, C, D, z, bias):
    (batch, width, length), num_states = u.shape, A.shape[1]
    return (
        *_gradients(u, delta, z, starts),
        starts.new_empty(2, batch, length, num_states),
        starts.new_empty(width, num_states + 2),
    )


def _gradients(u: Tensor, delta: Tensor, z: Tensor, starts: Tensor) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (u, delta, z)]


def _keep_inputs(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # Zeros for the second output would have its size.
    ctx.save_for_backward(output[1], *inputs)


def _differentiate(ctx, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError('selective_scan has no second derivative; do not use create_graph')
    if grad is None:
        return (None,) * len(ctx.needs_input_grad)
    starts, *inputs = ctx.saved_tensors
    of_u, of_delta, of_z, of_times, of_channels = _scan_backward(grad, starts, *inputs)
    of_B, of_C = of_times.mT.unbind()
    of_A, of_D, of_bias = of_channels.split([of_channels.shape[1] - 2, 1, 1], dim=1)
    gradients = of_u, of_delta, of_A, of_B, of_C, of_D.squeeze(1), of_z, of_bias.squeeze(1)
    return tuple(g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True))


triton_scan.register_autograd(_differentiate, setup_context=_keep_inputs)


def _with_strides(*tensors: Tensor) -> list[Tensor | int]:
    return [item for tensor in tensors for item in (tensor, *tensor.stride())]


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _softplus(x):
    """Compute log(1 + exp(x)) to full precision; the scan's steps are small."""
    e = tl.exp(-tl.abs(x))
    rounded = 1.0 + e
    # The quotient restores the digits of e that the sum lost.
    log = tl.where(rounded == 1.0, e, tl.log(rounded) * (e / (rounded - 1.0)))
    return tl.maximum(x, 0.0) + log


@triton.jit
def _at(pointer, batch_stride, stride, indices):
    """Return pointers to the first step of a sample's channels or states."""
    return pointer + tl.program_id(1).to(tl.int64) * batch_stride + indices * stride


@triton.jit(do_not_specialize=_SIZES)
def _forward(
    u, u_b, u_e, u_t,
    delta, delta_b, delta_e, delta_t,
    z, z_b, z_e, z_t,
    y, y_b, y_e, y_t,
    B, B_b, B_n, B_t,
    C, C_b, C_n, C_t,
    A, D, bias, starts,
    width, length, num_states, chunk,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Scan ``CHANNELS`` channels of a sample."""
    dtype = starts.dtype.element_ty
    e, n = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    real, inside = n < num_states, e < width
    both = inside[:, None] & real[None, :]
    state_index = e[:, None] * num_states + n[None, :]
    u, delta, z = _at(u, u_b, u_e, e), _at(delta, delta_b, delta_e, e), _at(z, z_b, z_e, e)
    y, B, C = _at(y, y_b, y_e, e), _at(B, B_b, B_n, n), _at(C, C_b, C_n, n)
    decay_rate = tl.load(A + state_index, mask=both, other=0.0).to(dtype)
    skip = tl.load(D + e, mask=inside, other=0.0).to(dtype)
    shift = tl.load(bias + e, mask=inside, other=0.0).to(dtype)
    starts += tl.program_id(1).to(tl.int64) * width * num_states
    state = tl.zeros([CHANNELS, STATES], dtype)
    for begin in range(0, length, chunk):
        tl.store(starts + state_index, state, mask=both)
        starts += tl.num_programs(1).to(tl.int64) * width * num_states
        for t in range(begin, tl.minimum(begin + chunk, length)):
            x = tl.load(u + t * u_t, mask=inside, other=0.0).to(dtype)
            step = _softplus(tl.load(delta + t * delta_t, mask=inside, other=0.0).to(dtype) + shift)
            into = tl.load(B + t * B_t, mask=real, other=0.0).to(dtype)
            out_of = tl.load(C + t * C_t, mask=real, other=0.0).to(dtype)
            gate = tl.load(z + t * z_t, mask=inside, other=0.0).to(dtype)
            state = tl.exp(step[:, None] * decay_rate) * state + (step * x)[:, None] * into[None, :]
            out = tl.sum(state * out_of[None, :], 1) + skip * x
            tl.store(y + t * y_t, out * gate * _sigmoid(gate), mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def _backward(
    u, u_b, u_e, u_t,
    delta, delta_b, delta_e, delta_t,
    z, z_b, z_e, z_t,
    grad, grad_b, grad_e, grad_t,
    of_u, of_u_b, of_u_e, of_u_t,
    of_delta, of_delta_b, of_delta_e, of_delta_t,
    of_z, of_z_b, of_z_e, of_z_t,
    B, B_b, B_n, B_t,
    C, C_b, C_n, C_t,
    A, D, bias, starts, states, of_times, of_channels,
    width, length, num_states, chunk,
    CHANNELS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of ``CHANNELS`` channels of a sample, and their part of B's and C's."""
    dtype = starts.dtype.element_ty
    e, n = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    real, inside = n < num_states, e < width
    both = inside[:, None] & real[None, :]
    state_index = e[:, None] * num_states + n[None, :]
    sample, samples = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    u, delta, z = _at(u, u_b, u_e, e), _at(delta, delta_b, delta_e, e), _at(z, z_b, z_e, e)
    grad, B, C = _at(grad, grad_b, grad_e, e), _at(B, B_b, B_n, n), _at(C, C_b, C_n, n)
    of_u, of_z = _at(of_u, of_u_b, of_u_e, e), _at(of_z, of_z_b, of_z_e, e)
    of_delta = _at(of_delta, of_delta_b, of_delta_e, e)
    decay_rate = tl.load(A + state_index, mask=both, other=0.0).to(dtype)
    skip = tl.load(D + e, mask=inside, other=0.0).to(dtype)
    shift = tl.load(bias + e, mask=inside, other=0.0).to(dtype)
    state_size = width * num_states
    states += sample * chunk * state_size
    of_times += ((tl.program_id(0) * samples + sample) * length) * num_states + n
    of_C = of_times + (tl.num_programs(0) * samples).to(tl.int64) * length * num_states

    # Of the state, from the steps after t.
    grad_state = tl.zeros([CHANNELS, STATES], dtype)
    grad_A = tl.zeros([CHANNELS, STATES], dtype)
    grad_D, grad_bias = tl.zeros([CHANNELS], dtype), tl.zeros([CHANNELS], dtype)
    chunks = tl.cdiv(length, chunk)
    for i in range(chunks):
        begin = (chunks - 1 - i) * chunk
        steps = tl.minimum(chunk, length - begin)
        start = ((chunks - 1 - i) * samples + sample) * state_size
        state = tl.load(starts + start + state_index, mask=both, other=0.0)
        # Another thread may read an element of the work space than the one that wrote it.
        tl.debug_barrier()
        for k in range(steps):
            tl.store(states + k * state_size + state_index, state, mask=both)
            t = begin + k
            x = tl.load(u + t * u_t, mask=inside, other=0.0).to(dtype)
            step = _softplus(tl.load(delta + t * delta_t, mask=inside, other=0.0).to(dtype) + shift)
            into = tl.load(B + t * B_t, mask=real, other=0.0).to(dtype)
            state = tl.exp(step[:, None] * decay_rate) * state + (step * x)[:, None] * into[None, :]
        tl.debug_barrier()
        for back in range(steps):
            k = steps - 1 - back
            t = begin + k
            x = tl.load(u + t * u_t, mask=inside, other=0.0).to(dtype)
            before_softplus = tl.load(delta + t * delta_t, mask=inside, other=0.0).to(dtype) + shift
            step = _softplus(before_softplus)
            into = tl.load(B + t * B_t, mask=real, other=0.0).to(dtype)
            out_of = tl.load(C + t * C_t, mask=real, other=0.0).to(dtype)
            gate = tl.load(z + t * z_t, mask=inside, other=0.0).to(dtype)
            grad_y = tl.load(grad + t * grad_t, mask=inside, other=0.0).to(dtype)
            last = tl.load(states + k * state_size + state_index, mask=both, other=0.0)
            decay = tl.exp(step[:, None] * decay_rate)
            state = decay * last + (step * x)[:, None] * into[None, :]

            opened = _sigmoid(gate)
            out = tl.sum(state * out_of[None, :], 1) + skip * x
            grad_z = grad_y * out * opened * (1.0 + gate * (1.0 - opened))
            tl.store(of_z + t * of_z_t, grad_z, mask=inside)
            grad_y *= gate * opened
            grad_D += grad_y * x
            of_C_t = tl.sum(state * grad_y[:, None], 0)
            tl.store(of_C + t * num_states, of_C_t, mask=real)
            grad_state += grad_y[:, None] * out_of[None, :]
            grad_du = tl.sum(grad_state * into[None, :], 1)
            of_B_t = tl.sum(grad_state * (step * x)[:, None], 0)
            tl.store(of_times + t * num_states, of_B_t, mask=real)
            grad_state *= decay
            # The gradient of step * A.
            product = grad_state * last
            grad_A += product * step[:, None]
            grad_step = tl.sum(product * decay_rate, 1) + grad_du * x
            grad_delta = grad_step * _sigmoid(before_softplus)
            grad_bias += grad_delta
            tl.store(of_delta + t * of_delta_t, grad_delta, mask=inside)
            tl.store(of_u + t * of_u_t, grad_du * step + grad_y * skip, mask=inside)

    of_channels += sample * width * (num_states + 2) + e * (num_states + 2)
    tl.store(of_channels[:, None] + n[None, :], grad_A, mask=both)
    tl.store(of_channels + num_states, grad_D, mask=inside)
    tl.store(of_channels + num_states + 1, grad_bias, mask=inside)
