r"""Triton kernels that compare relations tile by tile, so that no relation is in memory.

The largest entry of column j of the relation :math:`\kappa x_i x_j` is at the row's minimum or
maximum, depending on the sign of :math:`x_j`. The first kernel therefore computes the log-sum-exp
of a column in one pass. The second one computes the entries of both softmaxes again and sums
P (log P - log Q) and (Q - P + Q' - P') x, differences that are exactly 0 for equal rows.

A program handles a part of a row: of a sample's C logits for the class relation, or of a class's B
logits for the sample relation. The last head is the teacher.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries i and j of a tile. With four warps, a thread has 16 entries of it.
ROWS, COLUMNS = 32, 64
_ELEMENTS = 1024
# One compiled kernel serves all sizes of a batch.
_SIZES = ['heads', 'samples', 'classes', 'first_relation', 'size']


class Gate(NamedTuple):
    """A condition on the device: the kernels do nothing unless ``number`` exceeds ``limit``."""

    number: Tensor
    limit: float


def relations_kl(
    student: Tensor,
    teacher: Tensor,
    scale: float,
    relations: slice,
    limit: float = math.inf,
    gate: Gate | None = None,
    gradients: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the mean KL(teacher || student) of the relations' columns, and its gradient.

    Args:
        student: Logits (K, B, C) in float32 or float64.
        teacher: Logits (B, C).
        scale: Factor kappa of the relations.
        relations: Part of (class relation, sample relation).
        limit: Largest 2-norm of the teacher's logits, which are scaled down to it. Those of each
            head are scaled down to the teacher's. Infinite: neither is scaled.
        gate: If it is closed, ``gradients`` is unchanged and the values have no meaning.
        gradients: Where to write the gradients.

    Returns:
        Values (R, K) and gradients (R, K, B, C) for R relations.
    """
    heads, samples, classes = student.shape
    first, count = relations.start, relations.stop - relations.start
    x = torch.cat([student, teacher.unsqueeze(0)])
    norms = None if limit == math.inf else torch.linalg.vector_norm(x.flatten(1), dim=1)
    number, at_most = (None, 0.0) if gate is None else gate
    sizes = (heads, samples, classes, first)
    settings = (scale, limit, at_most)
    columns = x.new_empty(3, count, *x.shape)
    if gradients is None:
        gradients = x.new_empty(count, *student.shape)

    def programs(block: int) -> int:
        of_class, of_sample = samples * _blocks(classes, block), classes * _blocks(samples, block)
        return max((of_class, of_sample)[relations])

    partial = x.new_empty(2, count, heads, programs(ROWS))
    with torch.cuda.device_of(x):
        _normalizers[(programs(COLUMNS), count, heads + 1)](
            x, norms, columns, number, *sizes, *settings, ROWS, COLUMNS
        )
        _divergences[(programs(ROWS), count)](
            *(columns, gradients, partial, number, *sizes, scale, at_most),
            *(triton.next_power_of_2(heads), ROWS, COLUMNS),
        )
        sums = partial.sum(-1)
        if norms is not None:
            _through_the_limit[(_blocks(samples * classes, _ELEMENTS), count, heads)](
                x, norms, sums[1], gradients, samples * classes, limit, _ELEMENTS
            )
    return sums[0], gradients


def _blocks(length: int, block: int) -> int:
    return -(-length // block)


@triton.jit
def _locate(gate, COVERED: tl.constexpr, first_relation, samples, classes, BLOCK: tl.constexpr):
    """Return the row of this program, and the indices of its part of it.

    Returns:
        The index of the row's first logit and the stride between them, the index of the row among
        rows of equal length, the length (0 if the program has nothing to do) and the part's indices
        within the row.
    """
    of_class = tl.program_id(1) + first_relation == 0
    length = tl.where(of_class, classes, samples)
    blocks = tl.cdiv(length, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    part = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    packed = row * length
    length = tl.where(row < tl.where(of_class, samples, classes), length, 0)
    if gate is not None:
        length = tl.where(tl.load(gate) <= COVERED, 0, length)
    stride = tl.where(of_class, 1, classes)
    return row * tl.where(of_class, classes, 1), stride, packed, length, part


@triton.jit
def _limit(norm, LIMIT: tl.constexpr):
    """Return the largest norm, where ``norm`` points to the teacher's, which may be 0."""
    norm = tl.load(norm)
    # Of two arguments of tl.minimum, a constant would be rounded to float32.
    return tl.maximum(norm * tl.minimum(LIMIT / norm, 1.0), 1e-30)


@triton.jit(do_not_specialize=_SIZES)
def _normalizers(
    x,
    norms,
    columns,
    gate,
    heads,
    samples,
    classes,
    first_relation,
    SCALE: tl.constexpr,
    LIMIT: tl.constexpr,
    COVERED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute, for each column, its logit, the logit of its maximum, and its log-sum-exp."""
    first, stride, packed, length, j = _locate(
        gate, COVERED, first_relation, samples, classes, COLUMNS
    )
    size = samples.to(tl.int64) * classes
    x += tl.program_id(2) * size + first
    factor = 1.0
    if norms is not None:
        limit = _limit(norms + heads, LIMIT)
        factor = tl.minimum(limit / tl.load(norms + tl.program_id(2)), 1.0)

    least = tl.full([COLUMNS], float('inf'), x.dtype.element_ty)
    largest = tl.full([COLUMNS], -float('inf'), x.dtype.element_ty)
    for start in range(0, length, COLUMNS):
        i = start + tl.arange(0, COLUMNS)
        entries = tl.load(x + i * stride, mask=i < length, other=0.0) * factor
        least = tl.minimum(least, tl.where(i < length, entries, float('inf')))
        largest = tl.maximum(largest, tl.where(i < length, entries, -float('inf')))

    at = tl.load(x + j * stride, mask=j < length, other=0.0) * factor
    peak = tl.where(at < 0, tl.min(least, 0), tl.max(largest, 0))
    rate = SCALE * at
    total = tl.zeros([COLUMNS], x.dtype.element_ty)
    for start in range(0, length, ROWS):
        i = start + tl.arange(0, ROWS)
        entries = tl.load(x + i * stride, mask=i < length, other=0.0) * factor
        e = tl.exp(rate[None, :] * (entries[:, None] - peak[None, :]))
        total += tl.sum(tl.where((i < length)[:, None], e, 0.0), 0)

    columns += (tl.program_id(1) * (heads + 1) + tl.program_id(2)) * size + packed + j
    between = tl.num_programs(1) * (heads + 1) * size
    tl.store(columns, at, mask=j < length)
    tl.store(columns + between, peak, mask=j < length)
    tl.store(columns + 2 * between, tl.log(total), mask=j < length)


@triton.jit
def _load(columns, between, index, length):
    """Load what :func:`_normalizers` computed."""
    columns += index
    at = tl.load(columns, mask=index < length, other=0.0)
    peak = tl.load(columns + between, mask=index < length, other=0.0)
    return at, peak, tl.load(columns + 2 * between, mask=index < length, other=0.0)


@triton.jit(do_not_specialize=_SIZES)
def _divergences(
    columns,
    gradients,
    partial,
    gate,
    heads,
    samples,
    classes,
    first_relation,
    SCALE: tl.constexpr,
    COVERED: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute the gradient of ``ROWS`` logits, and their parts of two sums.

    The sums are the value, and the product of the gradient and the logits.
    """
    first, stride, packed, length, i = _locate(
        gate, COVERED, first_relation, samples, classes, ROWS
    )
    size = samples.to(tl.int64) * classes
    between = tl.num_programs(1) * (heads + 1) * size
    columns += tl.program_id(1) * (heads + 1) * size + packed
    teacher = columns + heads * size
    ti, ti_peak, ti_log = _load(teacher, between, i, length)
    head = tl.arange(0, HEADS)
    gradient = tl.zeros([ROWS, HEADS], columns.dtype.element_ty)
    value = tl.zeros([ROWS, HEADS], columns.dtype.element_ty)
    for start in range(0, length, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        inside = (j < length)[None, :]
        tj, tj_peak, tj_log = _load(teacher, between, j, length)
        # Entries (i, j) and (j, i), of the columns j and i.
        log_p = (SCALE * tj)[None, :] * (ti[:, None] - tj_peak[None, :]) - tj_log[None, :]
        p = tl.exp(log_p)
        p_ji = tl.exp((SCALE * ti)[:, None] * (tj[None, :] - ti_peak[:, None]) - ti_log[:, None])
        for k in range(heads):
            si, si_peak, si_log = _load(columns + k * size, between, i, length)
            sj, sj_peak, sj_log = _load(columns + k * size, between, j, length)
            log_q = (SCALE * sj)[None, :] * (si[:, None] - sj_peak[None, :]) - sj_log[None, :]
            q_ji = tl.exp(
                (SCALE * si)[:, None] * (sj[None, :] - si_peak[:, None]) - si_log[:, None]
            )
            both = tl.where(inside, (tl.exp(log_q) - p) + (q_ji - p_ji), 0.0)
            # Where P underflows to 0, log P may be -inf.
            kl = tl.where(inside & (p != 0), p * (log_p - log_q), 0.0)
            here = (head == k)[None, :]
            gradient += tl.where(here, tl.sum(both * sj[None, :], 1)[:, None], 0.0)
            value += tl.where(here, tl.sum(kl, 1)[:, None], 0.0)

    mask = (i < length)[:, None] & (head < heads)[None, :]
    of_head = (head * size)[None, :]
    gradient *= SCALE / size.to(gradient.dtype)
    logits = tl.load(columns + of_head + i[:, None], mask=mask, other=0.0)
    gradients += tl.program_id(1) * heads * size + first
    tl.store(gradients + of_head + (i * stride)[:, None], gradient, mask=mask)
    partial += (tl.program_id(1) * heads + head) * tl.num_programs(0) + tl.program_id(0)
    value = tl.sum(tl.where(mask, value, 0.0), 0) / size.to(gradient.dtype)
    tl.store(partial, value, mask=head < heads)
    partial += tl.num_programs(1) * heads * tl.num_programs(0)
    tl.store(partial, tl.sum(tl.where(mask, gradient * logits, 0.0), 0), mask=head < heads)


@triton.jit(do_not_specialize=_SIZES)
def _through_the_limit(
    x, norms, products, gradients, size, LIMIT: tl.constexpr, ELEMENTS: tl.constexpr
):
    """Turn the gradient of the limited logits f x, f = limit / norm(x), into that of x.

    It is f (g - x (g' x) / norm(x)^2).
    """
    limit = _limit(norms + tl.num_programs(2), LIMIT)
    factor = limit / tl.load(norms + tl.program_id(2))
    of_head = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
    element = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    scaled_down = element < tl.where(factor < 1, size, 0)
    gradients += of_head.to(tl.int64) * size + element
    gradient = tl.load(gradients, mask=scaled_down)
    # Of the gradient g and the logits f x.
    product = tl.load(products + of_head)
    along = tl.load(x + tl.program_id(2).to(tl.int64) * size + element, mask=scaled_down)
    along *= factor * product / limit / limit
    tl.store(gradients, factor * (gradient - along), mask=scaled_down)
