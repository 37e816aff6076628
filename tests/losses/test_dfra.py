"""DFRA against golden values, a naive reference and its own mathematics."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, DFRALoss

# Made with the authors' release in float64, from inputs in float32.
GOLDEN = np.load(Path(__file__).parents[1] / 'data' / 'dfra.npz')
TERMS = ('class_relation', 'sample_relation', 'probability')


def golden(case: int) -> dict[str, torch.Tensor]:
    prefix = f'case{case}_'
    keys = [key for key in GOLDEN if key.startswith(prefix)]
    return {key.removeprefix(prefix): torch.from_numpy(GOLDEN[key]) for key in keys}


def random_logits(*shape: int, scale: float = 2.0, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


@st.composite
def pairs(draw) -> tuple[torch.Tensor, torch.Tensor]:
    """A student's and a teacher's logits (B, C), small enough for loops."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    logits = arrays(np.float64, shape, elements=st.floats(-6, 6, width=16))
    return torch.from_numpy(draw(logits)), torch.from_numpy(draw(logits))


many = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize(
    ('dtype', 'rtol'), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=['float64', 'float32']
)
@pytest.mark.parametrize('case', range(5))
class TestGolden:
    def test_values(self, case, dtype, rtol):
        data = golden(case)
        loss = DFRALoss(data['temperature'].item(), data['alpha'].item())
        student, teacher = data['student'].to(dtype), data['teacher'].to(dtype)
        values = loss.terms(student, teacher) | {'total': loss(student, teacher)}
        assert set(values) == {*TERMS, 'total'}
        for name, value in values.items():
            assert value.dtype == dtype
            assert_close(value.double(), data[name], rtol=rtol, atol=0)

    def test_gradients(self, case, dtype, rtol):
        data = golden(case)
        loss = DFRALoss(data['temperature'].item(), data['alpha'].item())
        student = data['student'].to(dtype).requires_grad_()
        loss(student, data['teacher'].to(dtype)).sum().backward()
        # An entry near zero is as exact as those beside it.
        atol = rtol * data['grad'].abs().max().item()
        assert_close(student.grad.double(), data['grad'], rtol=rtol, atol=atol)


def log_softmax(numbers: list[float]) -> list[float]:
    largest = max(numbers)
    total = math.log(math.fsum(math.exp(x - largest) for x in numbers)) + largest
    return [x - total for x in numbers]


def kl(student: list[float], teacher: list[float]) -> float:
    log_q, log_p = log_softmax(student), log_softmax(teacher)
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def relation_kl(student: list[list[float]], teacher: list[list[float]], kappa: float) -> float:
    """Mean over rows, and over the columns of each row's relation."""
    values = [
        kl([kappa * x * s[j] for x in s], [kappa * x * t[j] for x in t])
        for s, t in zip(student, teacher, strict=True)
        for j in range(len(s))
    ]
    return math.fsum(values) / len(values)


def naive(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> dict[str, float]:
    """The definition, one number at a time."""
    s, t = (student / temperature).tolist(), (teacher / temperature).tolist()
    kappa = 1 / math.sqrt(len(s[0]))
    return {
        'class_relation': relation_kl(s, t, kappa),
        'sample_relation': relation_kl(
            list(zip(*s, strict=True)), list(zip(*t, strict=True)), kappa
        ),
        'probability': math.fsum(map(kl, s, t)) / len(s),
    }


class TestMathematics:
    @many
    @given(pairs(), st.floats(0.5, 8), st.floats(0, 4))
    def test_is_its_definition(self, pair, temperature, alpha):
        loss = DFRALoss(temperature, alpha)
        expected = naive(*pair, temperature)
        terms = loss.terms(*pair)
        for name in TERMS:
            assert terms[name].item() == pytest.approx(expected[name], rel=1e-9, abs=1e-12)
        total = expected['class_relation'] + expected['sample_relation']
        total += alpha * expected['probability']
        assert loss(*pair).item() == pytest.approx(total, rel=1e-9, abs=1e-12)

    @many
    @given(pairs())
    def test_no_term_is_negative(self, pair):
        assert all(value >= -1e-12 for value in DFRALoss().terms(*pair).values())

    @many
    @given(pairs())
    def test_an_equal_student_has_nothing_to_learn(self, pair):
        student = pair[0].clone().requires_grad_()
        loss = DFRALoss()(student, pair[0])
        loss.backward()
        assert_close(loss.item(), 0.0, rtol=0, atol=1e-12)
        assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-12)

    @many
    @given(pairs(), st.randoms(use_true_random=False))
    def test_order_of_samples_and_classes_does_not_matter(self, pair, random):
        samples, classes = (list(range(size)) for size in pair[0].shape)
        random.shuffle(samples)
        random.shuffle(classes)
        shuffled = (logits[samples][:, classes] for logits in pair)
        assert_close(DFRALoss().terms(*shuffled), DFRALoss().terms(*pair), rtol=1e-9, atol=1e-12)

    @many
    @given(pairs(), st.floats(-5, 5), st.floats(-5, 5))
    def test_probability_does_not_see_a_shift_of_a_sample(self, pair, shift, other_shift):
        student, teacher = pair
        shifted = DFRALoss().terms(student + shift, teacher + other_shift)['probability']
        expected = DFRALoss().terms(student, teacher)['probability']
        assert_close(shifted, expected, rtol=1e-9, atol=1e-12)

    def test_relations_see_a_shift(self):
        """Logits are not centred."""
        student, teacher = random_logits(2, 4, 6)
        terms, shifted = DFRALoss().terms(student, teacher), DFRALoss().terms(student + 1, teacher)
        for name in ('class_relation', 'sample_relation'):
            assert not torch.isclose(terms[name], shifted[name], rtol=1e-3)

    @many
    @given(pairs())
    def test_relations_do_not_see_a_common_sign(self, pair):
        flipped = DFRALoss().terms(-pair[0], pair[1])
        for name in ('class_relation', 'sample_relation'):
            assert_close(flipped[name], DFRALoss().terms(*pair)[name], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize('shape', [(3, 4), (2, 3, 4), (1, 5), (3, 1)])
    def test_gradient(self, shape):
        student = random_logits(*shape).requires_grad_()
        teacher = random_logits(*shape[-2:], seed=1)
        assert torch.autograd.gradcheck(lambda s: DFRALoss(2.0)(s, teacher), student)


class TestHeads:
    def test_one_value_a_head(self):
        loss = DFRALoss(temperature=2.0, alpha=0.5)
        heads = random_logits(3, 5, 7).requires_grad_()
        teacher = random_logits(5, 7, seed=1)
        together = loss(heads, teacher)
        alone = torch.stack([loss(head, teacher) for head in heads])
        assert together.shape == (3,)
        assert_close(together, alone, rtol=1e-12, atol=0)
        weights = torch.tensor([1.0, 2.0, 3.0])
        gradients = [
            torch.autograd.grad(value @ weights.double(), heads) for value in (together, alone)
        ]
        assert_close(*gradients, rtol=1e-12, atol=1e-15)

    def test_one_head_is_a_scalar(self):
        student, teacher = random_logits(2, 5, 7)
        assert DFRALoss()(student, teacher).shape == ()
        assert {value.shape for value in DFRALoss().terms(student, teacher).values()} == {()}
        assert {v.shape for v in DFRALoss().terms(student[None], teacher).values()} == {(1,)}

    @pytest.mark.parametrize('shape', [(5, 7), (3, 5, 7)])
    def test_the_teacher_gets_no_gradient(self, shape):
        student, teacher = random_logits(*shape), random_logits(5, 7)
        student.requires_grad_()
        teacher.requires_grad_()
        DFRALoss()(student, teacher).sum().backward()
        assert teacher.grad is None
        assert student.grad is not None


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
class TestHalfPrecision:
    def test_is_computed_in_float32(self, dtype):
        student, teacher = random_logits(3, 8, 10).to(dtype), random_logits(8, 10, seed=1).to(dtype)
        with torch.autocast('cpu', dtype):
            terms = DFRALoss().terms(student, teacher)
            total = DFRALoss()(student, teacher)
        assert total.dtype == torch.float32
        assert_close(terms, DFRALoss().terms(student.float(), teacher.float()), rtol=0, atol=0)
        assert_close(total, DFRALoss()(student.float(), teacher.float()), rtol=0, atol=0)

    def test_large_logits_do_not_overflow(self, dtype):
        """Their products are 90,000, above the range of float16."""
        student = torch.tensor([[300.0, -300, 0], [-300, 300, 5]], dtype=dtype, requires_grad=True)
        teacher = torch.tensor([[-300.0, 300, 0], [-300, 290, 5]], dtype=dtype)
        with torch.autocast('cpu', dtype):
            value = DFRALoss()(student, teacher)
        value.backward()
        assert_close(
            value.double(), DFRALoss()(student.double(), teacher.double()), rtol=1e-5, atol=0
        )
        assert value > 0
        assert student.grad.isfinite().all()


class TestErrors:
    @pytest.mark.parametrize('temperature', [0, 0.0, -1, math.inf, math.nan, None, '1'])
    def test_temperature(self, temperature):
        with pytest.raises(
            ConfigError, match=f'^temperature={temperature!r}: must be a number above 0$'
        ):
            DFRALoss(temperature=temperature)

    @pytest.mark.parametrize('alpha', [-1, -1e-9, math.inf, math.nan, None])
    def test_alpha(self, alpha):
        with pytest.raises(ConfigError, match=f'^alpha={alpha}: must be a number of 0 or more$'):
            DFRALoss(alpha=alpha)

    @pytest.mark.parametrize(
        ('student', 'teacher'),
        [
            ((4, 5), (4, 6)),
            ((4, 5), (3, 5)),
            ((2, 4, 5), (4, 6)),
            ((2, 4, 5), (2, 4, 5)),
            ((1, 2, 4, 5), (4, 5)),
            ((5,), (5,)),
        ],
    )
    def test_shapes(self, student, teacher):
        with pytest.raises(ConfigError) as caught:
            DFRALoss()(torch.zeros(student), torch.zeros(teacher))
        message = str(caught.value)
        assert message.startswith(f'logits: student {student}, teacher {teacher}: must be')
        assert '\n' not in message


def test_has_no_state():
    loss = copy.deepcopy(DFRALoss(temperature=3.0, alpha=0.5))
    assert (loss.temperature, loss.alpha) == (3.0, 0.5)
    assert not loss.state_dict()
    assert not list(loss.parameters())


def test_compiles_into_one_graph():
    student, teacher = random_logits(3, 4, 5), random_logits(4, 5, seed=1)
    compiled = torch.compile(DFRALoss(), backend='eager', fullgraph=True)
    assert_close(compiled(student, teacher), DFRALoss()(student, teacher))
