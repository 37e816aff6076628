"""Relations compared tile by tile against explicit relations in float64.

Without a GPU the kernels run in Triton's interpreter (conftest.py).
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from loss_helpers import normal
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, DFRALoss
from mldr_kd_mm.models.losses import relation
from mldr_kd_mm.models.losses.relation import RELATIONS, compare_relations

kernels = pytest.importorskip('mldr_kd_mm.models.losses.relation_triton', reason='needs triton')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


@pytest.fixture(scope='module', autouse=True)
def small_tiles():
    """Cover several tiles with few logits: the interpreter takes milliseconds for each tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, 'ROWS', 8)
        patch.setattr(kernels, 'COLUMNS', 16)
        patch.setattr(kernels, '_ELEMENTS', 16)
        yield


def logits(heads, samples, classes, scale=2.0, dtype=torch.float64):
    """Return logits of a student and a teacher."""
    student = normal(heads, samples, classes, scale=scale, dtype=dtype)
    return student.to(DEVICE), normal(samples, classes, scale=scale, seed=1, dtype=dtype).to(DEVICE)


def compared(student, teacher, form, names=RELATIONS, **kwargs):
    """Return the values, and the gradient of a weighted sum of them."""
    student = student.detach().clone().requires_grad_()
    terms = compare_relations(student, teacher, student.shape[-1] ** -0.5, names, form, **kwargs)
    weights = torch.arange(1.0, 7, device=DEVICE, dtype=student.dtype)[: len(student)]
    total = sum((i + 1) * (weights * term).sum() for i, term in enumerate(terms.values()))
    return {n: t.detach() for n, t in terms.items()}, *torch.autograd.grad(total, student)


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ('shape', 'bound'),
    [
        ((1, 1, 2), None),
        ((2, 1, 3), 1.0),
        ((3, 2, 2), 1.0),
        ((3, 2, 2), 100.0),
        ((1, 3, 1), None),
    ],
    ids=str,
)
def test_is_the_dense_form(shape, bound):
    expected = compared(*logits(*shape), 'dense', bound=bound)
    assert_close(compared(*logits(*shape), 'triton', bound=bound), expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    ('name', 'shape'), [('class_relation', (2, 1, 35)), ('sample_relation', (1, 19, 2))]
)
def test_one_relation_of_several_tiles(name, shape):
    pair = logits(*shape)
    expected = compared(*pair, 'dense', [name], bound=1.0)
    assert_close(compared(*pair, 'triton', [name], bound=1.0), expected, rtol=1e-10, atol=1e-15)


# Small logits give relations that are almost constant, whose differences have few digits.
@pytest.mark.parametrize(('scale', 'error'), [(0.1, 2e-5), (4.0, 2e-6), (30.0, 2e-6)])
def test_keeps_the_precision_of_float32(scale, error):
    student, teacher = logits(1, 1, 40, scale, torch.float32)
    names = ['class_relation']
    actual = compared(student, teacher, 'triton', names, bound=4.0)
    expected = compared(student.double(), teacher.double(), 'dense', names, bound=4.0)
    assert relative_error(actual[1], expected[1]) < error
    assert_close({n: v.double() for n, v in actual[0].items()}, expected[0], rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize('bound', [None, 0.5])
def test_equal_logits_give_exactly_zero(bound):
    _, teacher = logits(1, 2, 3, dtype=torch.float32)
    terms, gradient = compared(teacher.expand(2, -1, -1), teacher, 'triton', bound=bound)
    assert [value.tolist() for value in terms.values()] == [[0, 0], [0, 0]]
    assert not gradient.any()


@pytest.mark.parametrize('size', [1e4, 1e18, math.nan, math.inf])
def test_is_finite_if_the_logits_are(size):
    student, teacher = logits(1, 2, 3, dtype=torch.float32)
    student[0, 0, 1] = size
    terms, gradient = compared(student, teacher, 'triton')
    for result in (*terms.values(), gradient):
        assert result.isfinite().all() == math.isfinite(size)


def test_is_finite_if_the_teacher_gives_zeros():
    student, teacher = logits(1, 2, 3)
    terms, gradient = compared(student, 0 * teacher, 'triton', bound=1.0)
    assert all(result.isfinite().all() for result in (*terms.values(), gradient))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_loss_of_half_precision_logits(dtype):
    student, teacher = (x.to(dtype) for x in logits(1, 2, 3, scale=6.0))
    settings = dict(temperature=2.0, standardize=True, max_relation=1.0)
    expected = DFRALoss(relation='dense', **settings)(student.double(), teacher.double())
    with torch.autocast(DEVICE, dtype):
        value = DFRALoss(relation='triton', **settings)(student, teacher)
    assert value.dtype == torch.float32
    assert_close(value.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.slow
def test_passes_pytorchs_own_checks():
    student, teacher = logits(1, 1, 2)
    arguments = (student.requires_grad_(), teacher, 2**-0.5, 0, 2, math.inf)
    torch.library.opcheck(relation._relations_kl, arguments)


def test_compiles_into_one_graph():
    loss = DFRALoss(relation='triton', max_relation=1.0)
    compiled = torch.compile(loss, backend='aot_eager', fullgraph=True)
    results = []
    for function in (loss, compiled):
        student, teacher = logits(1, 2, 3)
        value = function(student.requires_grad_(), teacher)
        results.append((value.detach(), *torch.autograd.grad(value.sum(), student)))
    assert_close(*results, rtol=1e-12, atol=1e-15)


class TestLinearOnTheDevice:
    """Without reading the range of the logits, the result is right for any range."""

    @pytest.mark.parametrize('scale', [1.0, 40.0], ids=['covered', 'not covered'])
    def test_value_and_gradient(self, scale, monkeypatch):
        monkeypatch.setattr(kernels, 'ROWS', 32)
        student, teacher = logits(1, 1, 66, scale, torch.float32)
        kappa = 66**-0.5
        covered = relation._covered_reach(64, torch.finfo(torch.float32).eps / 4)
        assert (relation._reach(student.flatten(0, 1), kappa) < covered) == (scale == 1.0)
        value, gradient = relation._linear_on_gpu(student, teacher, kappa)
        exact = student.double().requires_grad_()
        expected = relation.relation_kl(exact, teacher.double(), kappa, 'dense')
        assert_close(value.double(), expected.detach(), rtol=2e-5, atol=1e-9)
        expected = torch.autograd.grad(expected.sum(), exact)
        assert relative_error(gradient.double(), *expected) < 2e-6

    def test_the_host_reads_nothing(self, monkeypatch):
        def launch(student, *args, **kwargs):
            return student.new_empty(1, len(student)), None

        monkeypatch.setattr(kernels, 'relations_kl', launch)
        # A fake tensor has no values to read.
        with torch._subclasses.FakeTensorMode():
            student, teacher = torch.empty(2, 3, 100), torch.empty(3, 100)
            value, gradient = relation._linear_on_gpu(student, teacher, 0.1)
        assert value.shape == (2,)
        assert gradient.shape == student.shape

    def test_covered_reach(self):
        error = torch.finfo(torch.float32).eps / 4
        covered = relation._covered_reach(64, error)
        assert relation._degree(covered, error) <= 64 < relation._degree(covered + 2, error)


class TestChoice:
    """Of the form, where a GPU is at hand or not, and Triton runs on it or not."""

    CASES = [
        ('auto', True, True, 100, True),
        ('auto', True, True, 2000, False),
        ('auto', True, False, 100, False),
        ('auto', False, True, 100, False),
        ('dense', True, True, 100, False),
        ('linear', True, True, 100, False),
        ('triton', True, True, 5000, True),
        ('triton', False, False, 100, False),
    ]

    @pytest.mark.parametrize(('form', 'is_cuda', 'runs', 'length', 'expected'), CASES)
    def test_is_tiled(self, monkeypatch, form, is_cuda, runs, length, expected):
        monkeypatch.setattr(relation, 'triton_runs', lambda device_type: runs)
        student = SimpleNamespace(is_cuda=is_cuda, device=SimpleNamespace(type='any'))
        assert relation._is_tiled(student, length, form) == expected

    def test_refuses_a_gpu_without_triton(self, monkeypatch):
        monkeypatch.setattr(relation, 'triton_runs', lambda device_type: False)
        student = SimpleNamespace(is_cuda=True, device=SimpleNamespace(type='cuda'))
        with pytest.raises(ConfigError, match=r"^relation='triton': must be 'auto', as Triton "):
            relation._is_tiled(student, 100, 'triton')
