"""DFRA against golden values and a naive reference, and its invariances."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import kl, logit_pairs, many, normal
from torch.testing import assert_close

from mldr_kd_mm import ConfigError, DFRALoss
from mldr_kd_mm.models.losses import dfra

# Computed with the authors' release in float64, from inputs in float32.
GOLDEN = np.load(Path(__file__).parents[2] / 'data' / 'dfra.npz')
TERMS = ('class_relation', 'sample_relation', 'probability')


def golden(case: int) -> dict[str, torch.Tensor]:
    prefix = f'case{case}_'
    keys = [key for key in GOLDEN if key.startswith(prefix)]
    return {key.removeprefix(prefix): torch.from_numpy(GOLDEN[key]) for key in keys}


def pairs():
    """Draw logits; here one class is enough."""
    return logit_pairs(min_classes=1)


@pytest.mark.parametrize(
    ('dtype', 'rtol'), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=['float64', 'float32']
)
@pytest.mark.parametrize('case', range(5))
class TestGolden:
    @pytest.mark.parametrize('relation', ['dense', 'linear'])
    def test_forms(self, case, dtype, rtol, relation):
        data = golden(case)
        student = data['student'].to(dtype).requires_grad_()
        loss = DFRALoss(data['temperature'].item(), data['alpha'].item(), relation=relation)
        value = loss(student, data['teacher'].to(dtype))
        value.sum().backward()
        assert_close(value.detach().double(), data['total'], rtol=rtol, atol=0)
        atol = rtol * data['grad'].abs().max().item()
        assert_close(student.grad.double(), data['grad'], rtol=rtol, atol=atol)

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
        # The error of an entry near zero is relative to the larger entries.
        atol = rtol * data['grad'].abs().max().item()
        assert_close(student.grad.double(), data['grad'], rtol=rtol, atol=atol)


def relation_kl(student: list[list[float]], teacher: list[list[float]], kappa: float) -> float:
    """Return the mean KL over rows and over the columns of each row's relation."""
    values = [
        kl([kappa * x * s[j] for x in s], [kappa * x * t[j] for x in t])
        for s, t in zip(student, teacher, strict=True)
        for j in range(len(s))
    ]
    return math.fsum(values) / len(values)


def naive(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> dict[str, float]:
    """Compute the terms by their definition, with scalars."""
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
        student, teacher = normal(2, 4, 6)
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
        student = normal(*shape).requires_grad_()
        teacher = normal(*shape[-2:], seed=1)
        assert torch.autograd.gradcheck(lambda s: DFRALoss(2.0)(s, teacher), student)


class TestWeights:
    """Weights of the three terms, for ablations."""

    WEIGHTS = {
        'class_relation': 'class_weight',
        'sample_relation': 'sample_weight',
        'probability': 'alpha',
    }

    @many
    @given(pairs(), st.floats(0, 4), st.floats(0, 4), st.floats(0.1, 4))
    def test_weigh_the_terms(self, pair, class_weight, sample_weight, alpha):
        terms = DFRALoss(2.0).terms(*pair)
        loss = DFRALoss(2.0, alpha, class_weight=class_weight, sample_weight=sample_weight)
        expected = class_weight * terms['class_relation']
        expected += sample_weight * terms['sample_relation'] + alpha * terms['probability']
        assert_close(loss(*pair), expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize('name', TERMS)
    def test_of_zero_leaves_out_its_term(self, name):
        student, teacher = normal(3, 4, 5), normal(4, 5, seed=1)
        terms = DFRALoss().terms(student, teacher)
        assert (terms[name] > 1e-3).all()
        weights = {'class_relation': 1.0, 'sample_relation': 1.0, 'probability': 2.0} | {name: 0.0}
        value = DFRALoss(**{self.WEIGHTS[name]: 0.0})(student, teacher)
        expected = sum(weights[other] * terms[other] for other in TERMS)
        assert_close(value, expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize('name', TERMS)
    def test_of_zero_computes_no_term(self, name):
        """The loss only requests the other terms."""
        asked = []

        class Asked(DFRALoss):
            def terms(self, student, teacher, names=TERMS):
                asked.extend(names)
                return super().terms(student, teacher, names)

        Asked(**{self.WEIGHTS[name]: 0.0})(*normal(2, 4, 5))
        assert asked == [other for other in TERMS if other != name]

    @pytest.mark.parametrize('names', [['probability'], ['sample_relation', 'class_relation'], []])
    def test_only_the_terms_that_are_named(self, names):
        student, teacher = normal(2, 4, 5)
        terms = DFRALoss().terms(student, teacher, names)
        every = DFRALoss().terms(student, teacher)
        assert list(terms) == names
        assert_close(terms, {name: every[name] for name in names}, rtol=0, atol=0)

    def test_all_zero(self):
        with pytest.raises(ConfigError) as caught:
            DFRALoss(alpha=0, class_weight=0.0, sample_weight=0)
        assert str(caught.value) == (
            'alpha=0, class_weight=0.0, sample_weight=0: at least one must be above 0'
        )


class TestStandardize:
    @many
    @given(logit_pairs(), st.floats(0.5, 8), st.floats(0, 4))
    def test_is_dfra_of_standardised_logits(self, pair, temperature, alpha):
        rows = [
            torch.stack([(z - z.mean()) / (z.std().clamp(min=0.01) + 1e-7) for z in logits])
            for logits in pair
        ]
        terms = DFRALoss(temperature, alpha, standardize=True).terms(*pair)
        expected = DFRALoss(temperature, alpha).terms(*rows)
        assert_close(terms, expected, rtol=1e-9, atol=1e-12)

    def test_does_not_see_scale_and_shift_of_a_sample(self):
        student, teacher = normal(3, 4, 5), normal(4, 5, seed=1)
        scales, shifts = torch.tensor([0.5, 1, 7, 20]), torch.tensor([-30.0, 0, 1, 5])
        moved = (
            student * scales[:, None] + shifts[:, None],
            teacher * scales.flip(0)[:, None] + shifts.flip(0)[:, None],
        )
        value = DFRALoss(standardize=True)(student, teacher)
        # The 1e-7 that is added to the deviation is not scaled.
        assert_close(DFRALoss(standardize=True)(*moved), value, rtol=1e-5, atol=0)
        assert not torch.isclose(DFRALoss()(*moved), DFRALoss()(student, teacher), rtol=0.1).any()

    def test_is_off_unless_told(self):
        student, teacher = normal(2, 4, 5)
        value = DFRALoss()(student, teacher)
        assert_close(value, DFRALoss(standardize=False)(student, teacher), rtol=0, atol=0)
        assert not torch.isclose(value, DFRALoss(standardize=True)(student, teacher), rtol=0.1)

    def test_each_head_alone(self):
        heads, teacher = normal(3, 4, 5), normal(4, 5, seed=1)
        loss = DFRALoss(standardize=True)
        alone = torch.stack([loss(head, teacher) for head in heads])
        assert_close(loss(heads, teacher), alone, rtol=1e-12, atol=0)

    def test_a_head_that_starts_at_zero_gets_a_gradient_of_usual_size(self):
        student, teacher = torch.zeros(4, 6, requires_grad=True), normal(4, 6, dtype=torch.float32)
        DFRALoss(standardize=True)(student, teacher).backward()
        # Without the lower limit of the deviation it would be 1.4e6.
        assert student.grad.abs().max() < 30


class TestMaxRelation:
    """kappa * mean(z^2), with kappa = 5^-0.5, is 1 at a root mean square of 5^0.25."""

    BOUND = 5**0.25

    def logits(self, rms, *shape, seed=0):
        drawn = normal(*shape, 4, 5, seed=seed)
        return drawn * rms / drawn.square().mean((-2, -1), keepdim=True).sqrt()

    def relations(self, student, teacher, **kwargs):
        """Return the value and the gradient of both relation terms."""
        student = student.clone().requires_grad_()
        value = DFRALoss(alpha=0.0, **kwargs)(student, teacher)
        return value.detach(), *torch.autograd.grad(value.sum(), student)

    @pytest.mark.parametrize('seed', range(5))
    def test_changes_no_bit_for_smaller_logits(self, seed):
        """Nor in float32, where the gradients of the terms must be added in the same order."""
        student = self.logits(0.9 * self.BOUND, 3, seed=seed).float().requires_grad_()
        teacher = self.logits(0.99 * self.BOUND, seed=9).float()
        results = []
        for bound in (1.0, None):
            values = DFRALoss(max_relation=bound)(student, teacher)
            results.append([values, *torch.autograd.grad(values.sum(), student)])
        assert_close(*results, rtol=0, atol=0)

    @pytest.mark.parametrize('max_relation', [1.0, 4.0])
    def test_compares_larger_logits_scaled_to_the_bound(self, max_relation):
        bound = self.BOUND * max_relation**0.5
        student, teacher = self.logits(30.0), self.logits(8.0, seed=1)
        value, _ = self.relations(student, teacher, max_relation=max_relation)
        expected, _ = self.relations(student * bound / 30, teacher * bound / 8)
        assert_close(value, expected, rtol=1e-12, atol=0)

    def test_bounds_a_head_by_the_teacher(self):
        student, teacher = self.logits(3.0), self.logits(0.5, seed=1)
        value, _ = self.relations(student, teacher, max_relation=1.0)
        expected, _ = self.relations(student * 0.5 / 3, teacher)
        assert_close(value, expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize('zero', ['student', 'teacher', 'both'])
    def test_is_finite_for_zeros(self, zero):
        student = torch.zeros(4, 5) if zero != 'teacher' else self.logits(3.0)
        teacher = torch.zeros(4, 5) if zero != 'student' else self.logits(3.0)
        value, gradient = self.relations(student, teacher, max_relation=1.0)
        assert value.isfinite()
        assert gradient.isfinite().all()

    def test_gradient_falls_with_the_size_of_the_logits(self):
        teacher = self.logits(1.0, seed=1)
        at = {
            rms: self.relations(self.logits(rms), teacher, max_relation=1.0)[1]
            for rms in (10.0, 1e6)
        }
        assert_close(at[1e6] * 1e5, at[10.0], rtol=1e-9, atol=0)
        unbounded = [self.relations(self.logits(rms), teacher)[1].norm() for rms in (10.0, 1e6)]
        assert unbounded[1] > 1e4 * unbounded[0]

    def test_is_the_gradient_of_the_value(self):
        loss = DFRALoss(max_relation=1.0)
        student = self.logits(3.0).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: loss(z, self.logits(2.0, seed=1)), student)

    def test_is_of_each_head(self):
        student, teacher = self.logits(1.0, 3), self.logits(2.0, seed=1)
        student = student * torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
        loss = DFRALoss(max_relation=1.0)
        assert_close(loss(student, teacher), torch.stack([loss(z, teacher) for z in student]))

    def test_leaves_the_probability_alone(self):
        student, teacher = self.logits(50.0), self.logits(20.0, seed=1)
        values = [
            DFRALoss(max_relation=bound).terms(student, teacher)['probability']
            for bound in (None, 1.0)
        ]
        assert values[0] == values[1]

    @pytest.mark.parametrize(
        ('classes', 'arguments', 'warnings'),
        [(2, {}, 1), (20, {}, 1), (100, {}, 0), (2, dict(max_relation=1.0), 0)],
    )
    def test_warns_once_without_a_bound(self, monkeypatch, classes, arguments, warnings):
        logged = []
        monkeypatch.setattr(dfra, 'print_log', lambda message, *args: logged.append(message))
        loss = DFRALoss(**arguments)
        loss.eval()(normal(3, classes), normal(3, classes))
        assert not logged
        loss.train()
        for _ in range(2):
            loss(normal(3, classes), normal(3, classes))
        assert len(logged) == warnings
        assert all(f'with {classes} classes' in message for message in logged)


class TestHeads:
    def test_one_value_a_head(self):
        loss = DFRALoss(temperature=2.0, alpha=0.5)
        heads = normal(3, 5, 7).requires_grad_()
        teacher = normal(5, 7, seed=1)
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
        student, teacher = normal(2, 5, 7)
        assert DFRALoss()(student, teacher).shape == ()
        assert {value.shape for value in DFRALoss().terms(student, teacher).values()} == {()}
        assert {v.shape for v in DFRALoss().terms(student[None], teacher).values()} == {(1,)}


def test_large_logits_do_not_overflow():
    """Their products are 90,000, above the range of float16."""
    dtype = torch.float16
    student = torch.tensor([[300.0, -300, 0], [-300, 300, 5]], dtype=dtype)
    teacher = torch.tensor([[-300.0, 300, 0], [-300, 290, 5]], dtype=dtype)
    with torch.autocast('cpu', dtype):
        value = DFRALoss()(student, teacher)
    assert_close(value.double(), DFRALoss()(student.double(), teacher.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(temperature=0.0), 'temperature=0.0: must be a positive number'),
        (dict(alpha=-1e-9), 'alpha=-1e-09: must be a non-negative number'),
        (dict(class_weight=math.nan), 'class_weight=nan: must be a non-negative number'),
        (dict(sample_weight=True), 'sample_weight=True: must be a non-negative number'),
        (dict(gather=1), 'gather=1: must be True or False'),
        (dict(standardize='yes'), "standardize='yes': must be True or False"),
        (dict(max_relation=0), 'max_relation=0: must be a positive number'),
        (dict(relation='sparse'), "relation='sparse': must be one of auto, dense, linear, triton"),
    ],
    ids=str,
)
def test_arguments(wrong, message):
    with pytest.raises(ConfigError) as caught:
        DFRALoss(**wrong)
    assert str(caught.value) == message


def test_compiles_into_one_graph():
    student, teacher = normal(3, 4, 5), normal(4, 5, seed=1)
    compiled = torch.compile(DFRALoss(), backend='eager', fullgraph=True)
    assert_close(compiled(student, teacher), DFRALoss()(student, teacher))


def case(*sizes: int, heads=(5,), dtype=torch.float64, arguments=None, **kwargs) -> dict:
    """Return a linear student with 6 inputs, and one batch of each size, one per process."""
    return dict(
        weight=normal(math.prod(heads), 6, seed=9, dtype=dtype),
        batches=[
            (normal(size, 6, seed=i, dtype=dtype), normal(size, 5, seed=10 + i, dtype=dtype))
            for i, size in enumerate(sizes)
        ],
        heads=heads,
        arguments=arguments or {},
        **kwargs,
    )


def together(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return value and gradient of one process on the joined batch."""
    inputs, teacher = map(torch.cat, zip(*case['batches'], strict=True))
    weight = case['weight'].requires_grad_()
    logits = (inputs @ weight.T).unflatten(-1, case['heads']).movedim(0, -2)
    value = DFRALoss(**case['arguments'])(logits.to(case.get('logits', logits.dtype)), teacher)
    value.sum().backward()
    return value.detach(), weight.grad


class TestGather:
    """Three real processes, each with a part of the batch."""

    CASES = dict(
        even=case(4, 4, 4),
        uneven=case(3, 1, 4),
        one_image=case(6, 1, 2),
        heads=case(2, 4, 1, heads=(3, 5)),
        linear=case(5, 3, 4, arguments=dict(relation='linear')),
        arguments=case(
            5, 3, 1, arguments=dict(temperature=2.0, alpha=0.5, standardize=True, class_weight=0)
        ),
        float32=case(3, 5, 2, heads=(3, 5), dtype=torch.float32),
        half=case(3, 5, 2, dtype=torch.float32, logits=torch.bfloat16),
        compiled=case(3, 5, 2, compile=True),
    )

    @pytest.fixture(scope='class')
    def found(self, tmp_path_factory):
        """Return the results of each process for all cases."""
        folder = tmp_path_factory.mktemp('gather')
        torch.save(self.CASES, folder / 'cases.pt')
        worker = Path(__file__).with_name('gather_worker.py')
        run_ranks(*((worker, rank, 3, folder) for rank in range(3)))
        return [torch.load(folder / f'found{rank}.pt') for rank in range(3)]

    def test_is_one_process_on_the_joined_batch(self, found):
        for name, case in self.CASES.items():
            value, gradient = together(case)
            tolerance = 1e-6 if value.dtype == torch.float32 else 1e-12
            # A gradient of three times the size is rounded differently in bfloat16.
            of_gradient = 2**-8 if 'logits' in case else tolerance
            atol = of_gradient * gradient.abs().max().item()
            for of_rank in found:
                values = {name: of_rank[name]['value']}
                assert_close(values, {name: value}, rtol=tolerance, atol=0)
                gradients = {name: of_rank[name]['gradient']}
                assert_close(gradients, {name: gradient}, rtol=of_gradient, atol=atol)

    def test_is_of_each_process_alone_in_evaluation(self, found):
        """A Distiller runs its losses in evaluation mode when it is built."""
        for rank, of_rank in enumerate(found):
            inputs, teacher = self.CASES['uneven']['batches'][rank]
            logits = inputs @ self.CASES['uneven']['weight'].T
            alone = DFRALoss()(logits.detach(), teacher)
            assert_close(of_rank['uneven']['alone'], alone, rtol=1e-12, atol=0)
            assert not torch.isclose(alone, of_rank['uneven']['value'], rtol=1e-2)


def test_without_other_processes_gathers_nothing():
    student, teacher = normal(3, 4, 5), normal(4, 5, seed=1)
    value = DFRALoss(gather=True)(student, teacher)
    assert_close(value, DFRALoss()(student, teacher), rtol=0, atol=0)
