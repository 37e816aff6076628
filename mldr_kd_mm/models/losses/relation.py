r"""Compare the relations of MLDR-KD's logits in linear time, or tile by tile on a GPU.

A row :math:`x` of :math:`M` logits has the relation :math:`P_{ij}`, the softmax over :math:`i` of
:math:`\kappa x_i x_j`. Let :math:`P` be the teacher's relation, of a row :math:`t`, and :math:`Q`
the student's, of a row :math:`s`. The sum of KL(teacher || student) over the columns and its
gradient with respect to :math:`s` are

.. math::
    \kappa\, t^\top P t - \sum_j \mathrm{LSE}_i(\kappa t_i t_j)
    - \kappa\, s^\top P s + \sum_j \mathrm{LSE}_i(\kappa s_i s_j), \qquad
    \kappa (Q + Q^\top) s - \kappa (P + P^\top) s.

One product with the teacher's relation therefore serves all heads of the student, and no tensor of
the size of a relation is kept for the backward pass. Both sides need the same quantities: for a row
and some vectors :math:`v`, the sum of the log-sum-exps, :math:`v^\top P v` and
:math:`(P + P^\top) v`. :func:`_dense` computes P block by block.

:func:`_linear` avoids P. Divided by its largest value in the column,
:math:`\exp(\kappa x_i x_j)` is :math:`\exp(r (\pm p - 1))`, where :math:`p \in [-1, 1]` is the
position of :math:`x_i` between the row's minimum and maximum,
:math:`r = \kappa |x_j| (\max x - \min x) / 2` is the rate, and the sign is that of :math:`x_j`. A
sum of products of Chebyshev polynomials of p and of r approximates it with the same coefficients
for all rows, which separates the sums over i and j. With
:math:`\sqrt{2 r \log(1 / \epsilon)}` polynomials the error is far below the column's sum, which is
at least 1. The computation is in float64, since the sums over a row cancel (float64 logits: exact
to about 1e-12). A C kernel computes the same sums if it was built.

On a GPU the range of the logits, which decides how many polynomials are needed, stays on the
device: :func:`_linear_on_gpu` always takes 64, and kernels that only start to work if those do not
suffice then compute the relations. Below 2,000 entries the Triton kernels of
:mod:`~mldr_kd_mm.models.losses.relation_triton` are faster; they compute value and gradient of all
heads and of both relations together.

Source: MLDR-KD (arXiv 2502.06189) for the quantity; the method is this project's.
"""

from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.triton import triton_runs

FORMS = ('auto', 'dense', 'linear', 'triton')
# The relation of each sample's classes, and that of each class's samples.
RELATIONS = ('class_relation', 'sample_relation')
# Elements of a temporary tensor: small enough for a CPU core's cache, large enough for a GPU.
_BLOCK = defaultdict(lambda: 2**26, cpu=2**18)
# From this length on a GPU takes the linear form rather than Triton's kernels, with this number of
# polynomials.
_LINEAR_ON_GPU = 2000
_DEGREE_ON_GPU = 64
# Without Triton: up to this length a GPU computes a relation faster than the host reads the range.
_DENSE_ON_GPU = 1024
_TINY = torch.finfo(torch.float64).tiny


class _Sums(NamedTuple):
    """Quantities of the relations P of N rows, and of c vectors v for each."""

    lse: Tensor
    """(N,): the sum of the columns' log-sum-exps."""
    energy: Tensor
    """(N, c): v' P v."""
    both: Tensor
    """(N, c, M): (P + P') v."""


def compare_relations(
    student: Tensor,
    teacher: Tensor,
    scale: float,
    names: Collection[str] = RELATIONS,
    form: str = 'auto',
    bound: float | None = None,
) -> dict[str, Tensor]:
    """Compute the mean KL(teacher || student) of the columns of relations of logits.

    Args:
        student: Logits (B, C), or (K, B, C) of K heads.
        teacher: Logits (B, C); no gradient flows into them.
        scale: Factor kappa of the relations.
        names: Relations to compare, of ``RELATIONS``.
        form: See :func:`relation_kl`. ``triton`` compares tile by tile on a GPU, and is ``dense``
            on the CPU.
        bound: Upper bound of kappa * mean(z^2) of the teacher's logits, which are scaled down to
            it. Those of each head are scaled down to the teacher's. None: no bound.

    Returns:
        Name -> scalar, or (K,).

    Raises:
        ConfigError: If Triton is requested and does not run on the GPU.
    """
    samples, classes = teacher.shape
    lengths = dict(zip(RELATIONS, (classes, samples), strict=True))
    terms = {}
    ordered = [name for name in RELATIONS if name in names]
    tiled = [name for name in ordered if _is_tiled(student, lengths[name], form)]
    if tiled:
        first = RELATIONS.index(tiled[0])
        limit = math.inf if bound is None else math.sqrt(bound * samples * classes / scale)
        heads = student.reshape(-1, samples, classes)
        values, _ = _relations_kl(heads, teacher, scale, first, len(tiled), limit)
        terms = dict(zip(tiled, values.reshape(-1, *student.shape[:-2]).unbind(), strict=True))
    if len(terms) < len(names):
        sides = _bounded(student, teacher, scale, bound)
    for name in names:
        if name not in terms:
            rows = sides if name == 'class_relation' else [logits.mT for logits in sides]
            terms[name] = relation_kl(*rows, scale, form)
    return terms


def _is_tiled(student: Tensor, length: int, form: str) -> bool:
    """Return whether Triton's kernels compare relations of a length."""
    if form == 'auto' and student.is_cuda and length < _LINEAR_ON_GPU:
        return triton_runs('cuda')
    if form != 'triton':
        return False
    runs = triton_runs(student.device.type)
    if student.is_cuda and not runs:
        raise ConfigError("relation='triton': must be 'auto', as Triton does not run on this GPU")
    return runs


def _bounded(
    student: Tensor, teacher: Tensor, scale: float, bound: float | None
) -> tuple[Tensor, Tensor]:
    """Scale the teacher's logits down to the bound, and those of each head to the teacher's."""
    if bound is None:
        # Both relations read this view, as they read the product below. Autograd then adds their
        # gradients in the same order, so that a bound that nothing exceeds changes no bit.
        return student.view_as(student), teacher
    of_student, of_teacher = (
        scale * logits.square().mean((-2, -1), keepdim=True) for logits in (student, teacher)
    )
    limit = of_teacher.clamp(torch.finfo(teacher.dtype).tiny, bound)
    of_student, of_teacher = (of.clamp_min(limit) for of in (of_student, of_teacher))
    return student * (limit / of_student).sqrt(), teacher * (limit / of_teacher).sqrt()


@torch.library.custom_op('mldr_kd_mm::relations_kl', mutates_args=())
def _relations_kl(
    student: Tensor, teacher: Tensor, scale: float, first: int, count: int, limit: float
) -> tuple[Tensor, Tensor]:
    """Compute values (R, K) and gradients (R, K, B, C) of relations, as one operation."""
    from mldr_kd_mm.models.losses.relation_triton import relations_kl

    return relations_kl(student, teacher, scale, slice(first, first + count), limit)


@_relations_kl.register_fake
def _(student, teacher, scale, first, count, limit):
    return student.new_empty(count, len(student)), student.new_empty(count, *student.shape)


def relation_kl(student: Tensor, teacher: Tensor, scale: float, form: str = 'auto') -> Tensor:
    """Compute the mean KL(teacher || student) of the relations' columns.

    Args:
        student: Rows (N, M), or (K, N, M) of K heads.
        teacher: Rows (N, M); no gradient flows into them.
        scale: Factor kappa of the relations.
        form: ``dense`` computes the relations block by block. ``linear`` avoids them, unless it
            would take more than M polynomials. ``auto`` takes the faster one.

    Returns:
        A scalar, or (K,). It has no second derivative.
    """
    if teacher.shape[-1] == 1:
        # A softmax over one entry is 1, so the loss is exactly 0.
        return (0 * student).sum((-2, -1))
    value, _ = _relation_kl(student.reshape(-1, *teacher.shape), teacher, scale, form)
    return value.reshape(student.shape[:-2])


@torch.library.custom_op('mldr_kd_mm::relation_kl', mutates_args=())
def _relation_kl(
    student: Tensor, teacher: Tensor, scale: float, form: str
) -> tuple[Tensor, Tensor]:
    """Compute the value (K,) and its gradient (K, N, M), as one operation for torch.compile."""
    length = student.shape[-1]
    if student.is_cuda and form in ('auto', 'linear') and triton_runs('cuda'):
        if length > _DEGREE_ON_GPU:
            return _linear_on_gpu(student, teacher, scale)
        form = 'dense'
    return _compare(student, teacher, scale, partial(_sums, scale=scale, form=form))


def _compare(
    student: Tensor, teacher: Tensor, scale: float, sums: Callable[[Tensor, Tensor], _Sums]
) -> tuple[Tensor, Tensor]:
    """Compute value and gradient from sums."""
    heads, num_rows, length = student.shape
    of_teacher = sums(teacher, torch.cat([teacher.unsqueeze(1), student.transpose(0, 1)], 1))
    rows = student.reshape(-1, length)
    of_student = sums(rows, rows.unsqueeze(1))

    energy = of_teacher.energy.sum(0)
    # Both are summed in the same order, so that the difference of equal logits is exactly 0.
    lse = of_student.lse.view(heads, num_rows).sum(1) - of_teacher.lse.view(1, num_rows).sum(1)
    value = scale * (energy[0] - energy[1:]) + lse
    gradient = of_student.both.view_as(student) - of_teacher.both[:, 1:].transpose(0, 1)
    gradient *= scale
    columns = num_rows * length
    return (value / columns).to(student.dtype), (gradient / columns).to(student.dtype).contiguous()


@_relation_kl.register_fake
def _(student, teacher, scale, form):
    return student.new_empty(student.shape[0]), student.new_empty(student.shape)


def _keep_gradient(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # Zeros for the second output would have its size.
    ctx.save_for_backward(output[1])


def _backward(ctx, of_value: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError('DFRALoss has no second derivative; its gradient comes with its value')
    if of_value is None:
        return (None,) * len(ctx.needs_input_grad)
    (gradient,) = ctx.saved_tensors
    gradient = of_value[..., None, None] * gradient
    # The values of several relations depend on the same logits.
    gradient = gradient.sum(0) if gradient.dim() == 4 else gradient
    return gradient, *(None for _ in ctx.needs_input_grad[1:])


for _operation in (_relation_kl, _relations_kl):
    _operation.register_autograd(_backward, setup_context=_keep_gradient)


def _sums(rows: Tensor, vectors: Tensor, scale: float, form: str) -> _Sums:
    """Compute the sums for rows (N, M) and vectors (N, c, M)."""
    length = rows.shape[1]
    on_gpu = rows.is_cuda
    if form in ('dense', 'triton') or (form == 'auto' and on_gpu and length <= _DENSE_ON_GPU):
        return _dense(rows, vectors, scale)
    reach = _reach(rows, scale).item()  # On a GPU the host waits for it.
    degree = _degree(reach, torch.finfo(rows.dtype).eps / 4)
    if degree > (length if form == 'linear' else length / 2):
        return _dense(rows, vectors, scale)
    rows, vectors = rows.double().contiguous(), vectors.double().contiguous()
    kernel = None if on_gpu else _kernel()
    reach = torch.tensor(max(reach, _TINY), device=rows.device, dtype=rows.dtype)
    coefficients = _coefficients(reach, degree)
    if kernel is None:
        return _linear(rows, vectors, scale, reach, coefficients)
    return _linear_in_c(kernel, rows, vectors, scale, reach.item(), coefficients)


def _linear_on_gpu(student: Tensor, teacher: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Compute value and gradient without relations, while the host waits for nothing.

    For rates that the polynomials do not cover, the result is that of Triton's kernels.
    """
    from mldr_kd_mm.models.losses.relation_triton import Gate, relations_kl

    reach = _reach(torch.cat([student.flatten(0, 1), teacher]), scale).clamp_min(_TINY)
    coefficients = _coefficients(reach, _DEGREE_ON_GPU)

    def sums(rows: Tensor, vectors: Tensor) -> _Sums:
        return _linear(rows.double(), vectors.double(), scale, reach, coefficients)

    value, gradient = _compare(student, teacher, scale, sums)
    covered = _covered_reach(_DEGREE_ON_GPU, torch.finfo(student.dtype).eps / 4)
    gate = Gate(reach, covered)
    tiled, _ = relations_kl(
        student, teacher, scale, slice(0, 1), gate=gate, gradients=gradient.unsqueeze(0)
    )
    return torch.where(reach <= covered, value, tiled[0]), gradient


def _reach(rows: Tensor, scale: float) -> Tensor:
    """Return the largest rate of rows (N, M)."""
    low, high = rows.aminmax(dim=1)
    return (rows.abs().amax(1).double() * (high - low) * (scale / 2)).max()


def _dense(rows: Tensor, vectors: Tensor, scale: float) -> _Sums:
    """Compute the sums from relations, block by block.

    The sums of student and teacher nearly cancel. Their largest parts, the columns' maxima and the
    vectors' midpoints, are therefore summed separately, in float64.
    """
    num_rows, length = rows.shape
    low, high = rows.double().aminmax(dim=1, keepdim=True)
    lse = scale * (rows * torch.where(rows < 0, low, high)).sum(1)
    middle = (vectors.amax(2, keepdim=True) + vectors.amin(2, keepdim=True)) / 2
    energy = (middle.double() * vectors).sum(2)
    both = middle.expand_as(vectors).contiguous()
    block = _BLOCK[rows.device.type]
    for part in _parts(num_rows, length * length, block):
        x, v, centred = rows[part], vectors[part], vectors[part] - middle[part]
        scaled = scale * x
        low, high = scaled.aminmax(dim=1, keepdim=True)
        for columns in _parts(length, length * len(x), block):
            at = x[:, columns]
            peaks = torch.where(at < 0, low * at, high * at)
            p = (scaled.unsqueeze(2) * at.unsqueeze(1)).sub_(peaks.unsqueeze(1)).exp_()
            normalizer = p.sum(1, keepdim=True)
            p /= normalizer
            forward = centred @ p
            lse[part] += normalizer.log().sum((1, 2), dtype=torch.float64)
            energy[part] += (forward * v[:, :, columns]).sum(2, dtype=torch.float64)
            both[part, :, columns] += forward
            both[part] += v[:, :, columns] @ p.mT
    return _Sums(lse, energy, both)


def _parts(count: int, size: int, block: int) -> Iterator[slice]:
    """Split ``count`` items of ``size`` elements into parts of about ``block`` elements."""
    step = max(1, block // size)
    return (slice(start, start + step) for start in range(0, count, step))


def _linear(
    rows: Tensor, vectors: Tensor, scale: float, reach: Tensor, coefficients: Tensor
) -> _Sums:
    """Compute the sums without relations, in float64, for rates up to ``reach``."""
    degree = len(coefficients)
    # For odd n, T_n(-p) is -T_n(p); even and odd terms are summed apart for the two signs.
    even, odd = coefficients.clone(), coefficients.clone()
    even[1::2] = odd[::2] = 0
    parts = []
    for part in _parts(len(rows), 2 * degree * rows.shape[1], _BLOCK[rows.device.type]):
        x, v = rows[part], vectors[part]
        low, high = x.aminmax(dim=1, keepdim=True)
        half = (high - low) / 2
        sign = torch.where(x < 0, -1.0, 1.0).unsqueeze(1)
        of_position = _chebyshev(((x - low) / half - 1).nan_to_num(0.0), degree)
        of_rate = _chebyshev(2 * scale / reach * half * x.abs() - 1, degree)
        sums = torch.cat([v.new_ones(len(x), 1, x.shape[1]), v], 1) @ of_position.mT
        columns = sums @ even @ of_rate + sign * (sums @ odd @ of_rate)
        normalizer, forward = columns[:, :1], columns[:, 1:]
        weighted = v / normalizer
        back = weighted @ of_rate.mT @ even.T + (weighted * sign) @ of_rate.mT @ odd.T
        peaks = scale * x * torch.where(x < 0, low, high)
        parts.append(
            _Sums(
                (peaks + normalizer[:, 0].log()).sum(1),
                (weighted * forward).sum(2),
                forward / normalizer + back @ of_position,
            )
        )
    return _Sums(*map(torch.cat, zip(*parts, strict=True)))


def _chebyshev(x: Tensor, degree: int) -> Tensor:
    """Evaluate the first ``degree`` Chebyshev polynomials at x (N, M): (N, degree, M)."""
    n = torch.arange(degree, dtype=x.dtype, device=x.device)
    return torch.cos(n[:, None] * x.clamp(-1, 1).acos().unsqueeze(1))


def _degree(reach: float, error: float) -> int:
    """Return how many polynomials approximate exp(r (p - 1)) for all r up to ``reach``.

    The coefficients of exp(r (p - 1)) are exp(-r) I_n(r), the probability that two Poisson
    variables of mean r / 2 differ by n. The truncation error therefore grows with r.
    """
    if not math.isfinite(reach) or reach > 1e6:
        return 2**31  # Longer than any row.
    most = int(12 * math.sqrt(reach)) + 32
    ratios, ratio = [0.0] * (most + 1), 0.0
    for n in range(most, 0, -1):
        ratio = ratios[n] = reach / (2 * n + reach * ratio)
    terms = np.cumprod([1.0, *ratios[1:]])
    terms[1:] *= 2
    left_out = np.cumsum(terms[::-1])[::-1] / terms.sum()
    return max(2, int(np.argmax(left_out <= error)))


@lru_cache
def _covered_reach(degree: int, error: float) -> float:
    """Return the largest rate that ``degree`` polynomials approximate."""
    covered, too_large = 0.0, float(degree**2)
    while too_large - covered > 0.1:
        middle = (covered + too_large) / 2
        covered, too_large = (
            (middle, too_large) if _degree(middle, error) <= degree else (covered, middle)
        )
    return covered


def _coefficients(reach: Tensor, degree: int) -> Tensor:
    """Return the coefficients (n, k) of T_n(p) T_k(2 r / reach - 1) in exp(r (p - 1))."""
    n = torch.arange(degree, dtype=reach.dtype, device=reach.device)
    angles = (n + 0.5) * (math.pi / degree)
    nodes = angles.cos()
    values = torch.exp(reach * (nodes + 1) / 2 * (nodes[:, None] - 1))
    transform = torch.cos(n[:, None] * angles) * 2 / degree
    transform[0] /= 2
    return transform @ values @ transform.T


@lru_cache(maxsize=1)
def _kernel() -> ctypes.CDLL | None:
    """Load the compiled relation.c; None if the installation had no C compiler."""
    for path in Path(__file__).parent.glob('_relation.*'):
        kernel = ctypes.CDLL(str(path))
        kernel.relation_rows.restype = None
        return kernel
    return None


def _linear_in_c(
    kernel: ctypes.CDLL,
    rows: Tensor,
    vectors: Tensor,
    scale: float,
    reach: float,
    coefficients: Tensor,
) -> _Sums:
    """Compute :func:`_linear` in C, on as many threads as torch uses."""
    (num_rows, length), count, degree = rows.shape, vectors.shape[1], len(coefficients)
    sums = _Sums(
        rows.new_empty(num_rows), rows.new_empty(num_rows, count), torch.empty_like(vectors)
    )

    def compute(part: slice) -> None:
        tensors = [tensor[part] for tensor in (rows, vectors, *sums)]
        # relation.c describes this work space.
        work = rows.new_empty(7 * (length + 32 + degree))
        x, v, *results = (ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors)
        kernel.relation_rows(
            x,
            v,
            ctypes.c_void_p(coefficients.data_ptr()),
            ctypes.c_double(scale),
            ctypes.c_double(reach),
            *map(ctypes.c_long, (len(tensors[0]), length, count, degree)),
            *results,
            ctypes.c_void_p(work.data_ptr()),
        )

    threads = min(torch.get_num_threads(), num_rows)
    if threads == 1:
        compute(slice(None))
    else:
        edges = [num_rows * i // threads for i in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(compute, map(slice, edges, edges[1:])))
    return sums
