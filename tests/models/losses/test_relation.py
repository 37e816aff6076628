"""Relations compared in linear time, against explicit relations in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_helpers import normal
from torch.testing import assert_close

from mldr_kd_mm.models.losses import relation
from mldr_kd_mm.models.losses.relation import relation_kl

SCALE = 10**-0.5
# tools/setup_env.sh compiles it if there is a C compiler.
needs_kernel = pytest.mark.skipif(relation._kernel() is None, reason='needs a C compiler')


def written_out(student, teacher, scale, dtype=torch.float64):
    """Return the value (K,) and the gradient of its sum by the definition, in any precision."""
    student, teacher = student.to(dtype).requires_grad_(), teacher.to(dtype)

    def log_relation(x):
        return (scale * x.unsqueeze(-1) * x.unsqueeze(-2)).log_softmax(-2)

    log_p, log_q = log_relation(teacher), log_relation(student)
    value = (log_p.exp() * (log_p - log_q)).sum(-2).mean((-2, -1))
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach().double(), gradient.double()


def computed(student, teacher, scale, form):
    student = student.detach().clone().requires_grad_()
    value = relation_kl(student, teacher, scale, form)
    value.sum().backward()
    return value.detach(), student.grad


@pytest.fixture(params=['c', 'torch'])
def linear(request, monkeypatch):
    """Select the implementation of the linear form, in torch or in C."""
    if request.param == 'torch':
        monkeypatch.setattr(relation, '_kernel', lambda: None)
    elif relation._kernel() is None:
        pytest.skip('needs a C compiler')


@pytest.fixture
def used(monkeypatch):
    """Return a list of the forms that are computed, in order."""
    forms = []
    for form in ('dense', 'linear', 'linear_in_c'):
        original = getattr(relation, f'_{form}')

        def record(*args, form=form, original=original):
            forms.append(form)
            return original(*args)

        monkeypatch.setattr(relation, f'_{form}', record)
    return forms


@st.composite
def rows(draw):
    """Draw rows (K, N, M) and (N, M) with constant rows, ties and large entries."""
    heads, count = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    length = draw(st.sampled_from([2, 3, 15, 16, 17, 33, 100]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 4.0, 15.0, 50.0]))
    x = torch.rand(heads + 1, count, length, generator=generator, dtype=torch.float64) * 2 - 1
    shape = draw(st.sampled_from(['free', 'constant row', 'ties', 'one sign', 'zero']))
    if shape == 'constant row':
        x[:, 0] = x[:, 0, :1]
    elif shape == 'ties':
        x = (2 * x).round() / 2
    elif shape == 'one sign':
        x = x.abs()
    elif shape == 'zero':
        x[0] = 0
    return scale * x[1:], scale * x[0]


def errors(actual, expected):
    """Return the largest error of the value and of the gradient."""
    return [(a.double() - e).abs().max().item() for a, e in zip(actual, expected, strict=True)]


@pytest.mark.parametrize('form', ['auto', 'dense', 'linear'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@settings(max_examples=50, deadline=None)
@given(pair=rows(), kappa=st.sampled_from([0.03, 0.1, 0.5]))
def test_is_the_definition(dtype, form, pair, kappa):
    """The error is at most that of the definition in the same precision, plus rounding."""
    student, teacher = (x.to(dtype) for x in pair)
    expected = written_out(student, teacher, kappa)
    actual = computed(student, teacher, kappa, form)
    assert actual[0].dtype == actual[1].dtype == dtype
    own = errors(written_out(student, teacher, kappa, dtype), expected)
    largest = max(student.abs().max(), teacher.abs().max()).item()
    terms = [1 + kappa * largest**2, kappa * largest / student[0].numel()]
    # The linear form computes in float64 for both, and its sums over a row cancel: of 2,000 pairs
    # the largest error was 2e-12 of a term, and in float32 one unit of rounding.
    precision = 1e-11 if dtype == torch.float64 else 10 * torch.finfo(dtype).eps
    for error, unavoidable, term in zip(errors(actual, expected), own, terms, strict=True):
        assert error <= 4 * unavoidable + precision * term


@pytest.mark.usefixtures('linear')
@pytest.mark.parametrize(('dtype', 'error'), [(torch.float32, 5e-7), (torch.float64, 1e-12)])
@pytest.mark.parametrize(('spread', 'length'), [(1, 100), (4, 100), (12, 1000)])
def test_linear_keeps_the_precision(used, dtype, error, spread, length):
    student = normal(3, 4, length, scale=spread, dtype=dtype)
    teacher = normal(4, length, scale=spread, seed=1, dtype=dtype)
    kappa = length**-0.5
    value, gradient = computed(student, teacher, kappa, 'linear')
    assert len(used) == 2
    assert 'dense' not in used
    expected = written_out(student, teacher, kappa)
    assert_close(value.double(), expected[0], rtol=error, atol=0)
    largest = expected[1].abs().max().item()
    assert_close(gradient.double(), expected[1], rtol=0, atol=error * largest)


@needs_kernel
@pytest.mark.parametrize('threads', [1, 3])
def test_c_is_torch(threads, monkeypatch):
    student, teacher = normal(2, 5, 70), normal(5, 70, seed=1)
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    in_c = computed(student, teacher, SCALE, 'linear')
    monkeypatch.setattr(relation, '_kernel', lambda: None)
    assert_close(in_c, computed(student, teacher, SCALE, 'linear'), rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures('linear')
@pytest.mark.parametrize('form', ['dense', 'linear'])
def test_blocks_change_nothing(form, monkeypatch):
    student, teacher = normal(2, 7, 60), normal(7, 60, seed=1)
    whole = computed(student, teacher, SCALE, form)
    for size in (1, 500, 20_000):
        monkeypatch.setitem(relation._BLOCK, 'cpu', size)
        assert_close(computed(student, teacher, SCALE, form), whole, rtol=1e-12, atol=1e-14)


class TestChoice:
    """The cheaper form is used for any logits."""

    def test_few_classes(self, used):
        computed(normal(2, 8, 10), normal(8, 10, seed=1), SCALE, 'auto')
        assert used == ['dense', 'dense']

    def test_many_classes(self, used):
        computed(normal(2, 8, 500), normal(8, 500, seed=1), 500**-0.5, 'auto')
        assert len(used) == 2
        assert 'dense' not in used

    @pytest.mark.parametrize('form', ['auto', 'linear'])
    @pytest.mark.parametrize('size', [1e4, 1e30, math.nan, math.inf])
    def test_a_range_that_polynomials_do_not_cover(self, used, form, size):
        student = normal(1, 2, 50)
        student[0, 0, 0] = size
        value, _ = computed(student, normal(2, 50, seed=1), SCALE, form)
        assert used[-1] == 'dense'
        assert value.isfinite().all() == math.isfinite(size)


class TestGradient:
    def test_weights_of_the_heads(self):
        student = normal(3, 4, 40).requires_grad_()
        teacher, weights = normal(4, 40, seed=1), torch.tensor([1.0, -2.0, 0.5])
        (relation_kl(student, teacher, SCALE) * weights).sum().backward()
        expected = written_out(student.detach(), teacher, SCALE)[1] * weights[:, None, None]
        assert_close(student.grad, expected)

    def test_is_not_differentiated_again(self):
        student = normal(2, 4, 6).requires_grad_()
        value = relation_kl(student, normal(4, 6, seed=1), SCALE)
        with pytest.raises(RuntimeError, match='^DFRALoss has no second derivative'):
            torch.autograd.grad(value.sum(), student, create_graph=True)

    def test_one_head_without_an_axis(self):
        student, teacher = normal(4, 6), normal(4, 6, seed=1)
        assert_close(
            relation_kl(student, teacher, SCALE), relation_kl(student[None], teacher, SCALE)[0]
        )

    def test_one_entry(self):
        student = normal(2, 3, 1).requires_grad_()
        value = relation_kl(student, normal(3, 1, seed=1), SCALE)
        value.sum().backward()
        assert value.tolist() == [0, 0]
        assert student.grad.tolist() == torch.zeros(2, 3, 1).tolist()

    def test_passes_pytorchs_own_checks(self):
        arguments = (normal(2, 3, 40).requires_grad_(), normal(3, 40, seed=1), SCALE, 'linear')
        torch.library.opcheck(relation._relation_kl, arguments)


MEMORY = """
from pathlib import Path
import torch
from mldr_kd_mm.models.losses.relation import relation_kl

student = torch.randn(6, 128, 21841).requires_grad_()
teacher = torch.randn(128, 21841)

def resident(field):
    status = Path('/proc/self/status').read_text().split()
    return int(status[status.index(field) + 1])

Path('/proc/self/clear_refs').write_text('5')  # resets the peak
before = resident('VmRSS:')
for s, t in ((student, teacher), (student.mT, teacher.mT)):
    relation_kl(s, t, 21841**-0.5).sum().backward()
assert student.grad.isfinite().all()
print((resident('VmHWM:') - before) / 2**20)
"""


@pytest.mark.slow
@needs_kernel
def test_21841_classes_fit_into_2_gib():
    """The relation of a single sample would need 1.8 GiB."""
    command = [sys.executable, '-c', MEMORY]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout.split()[-1]) < 2
