"""What holds for every loss."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from loss_helpers import normal
from torch import Tensor, nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models import losses
from mldr_kd_mm.registry import MODELS

BATCH, CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, SAMPLES = 5, 7, 4, 6, 20
WIDTHS = dict(student_width=STUDENT_WIDTH, teacher_width=TEACHER_WIDTH)

LOGIT_LOSSES = {
    'kd': dict(type='KDLoss', temperature=4.0),
    'ls': dict(type='LogitStandardizationLoss'),
    'dkd': dict(type='DKDLoss', temperature=2.0),
    'dist': dict(type='DISTLoss', temperature=2.0),
    'ofa': dict(type='OFALoss', eps=1.5),
    'dfra': dict(type='DFRALoss', temperature=2.0),
    'dfra_ls': dict(type='DFRALoss', standardize=True),
}
VECTOR_LOSSES = {
    'rkd': dict(type='RKDLoss'),
    'cc': dict(type='CCLoss', dim=8, **WIDTHS),
    'crd': dict(type='CRDLoss', num_samples=SAMPLES, negatives=6, dim=8, **WIDTHS),
    'rsd': dict(type='RSDLoss', **WIDTHS),
    'rsd_plain': dict(
        type='RSDLoss', decoupler=False, student_width=TEACHER_WIDTH, teacher_width=TEACHER_WIDTH
    ),
}
# Whose own layers are trained with the student.
WITH_LAYERS = ['cc', 'crd', 'rsd', 'fitnet']
LOSSES = LOGIT_LOSSES | VECTOR_LOSSES | {'fitnet': dict(type='FitNetLoss', **WIDTHS)}


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(copy.deepcopy(LOSSES[name]))


def shapes(name: str, batch: int = BATCH) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if name in LOGIT_LOSSES:
        return (batch, CLASSES), (batch, CLASSES)
    if name == 'fitnet':
        return (batch, STUDENT_WIDTH, 4, 4), (batch, TEACHER_WIDTH, 2, 2)
    width = LOSSES[name].get('student_width', STUDENT_WIDTH)
    return (batch, width), (batch, TEACHER_WIDTH)


def labels(loss: nn.Module, batch: int = BATCH) -> dict[str, Tensor]:
    """What a loss reads beside the two tensors."""
    every = dict(target=torch.tensor([0, 6, 3, 3, 1])[:batch], index=torch.arange(batch) * 3)
    return {key: every[key] for key in every if key in inspect.signature(loss.forward).parameters}


def inputs(name: str, batch: int = BATCH, dtype=torch.float64, seed: int = 0) -> list[Tensor]:
    return [
        normal(*shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(shapes(name, batch))
    ]


every_loss = pytest.mark.parametrize('name', LOSSES)
every_logit_loss = pytest.mark.parametrize('name', LOGIT_LOSSES)
half_precision = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)


def test_every_loss_is_here():
    assert {config['type'] for config in LOSSES.values()} == set(losses.__all__)
    assert {name for name in LOSSES if getattr(build(name), 'compares_logits', False)} == set(
        LOGIT_LOSSES
    )
    assert [name for name in LOSSES if list(build(name).parameters())] == WITH_LAYERS


@every_loss
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_is_a_scalar_of_the_inputs_dtype(name, dtype):
    loss = build(name).to(dtype)
    value = loss(*inputs(name, dtype=dtype), **labels(loss))
    assert value.shape == ()
    assert value.dtype == dtype
    assert value > 1e-3


class TestHeads:
    @every_logit_loss
    def test_each_as_alone(self, name):
        loss = build(name)
        heads, teacher = normal(3, BATCH, CLASSES).requires_grad_(), inputs(name)[1]
        together = loss(heads, teacher, **labels(loss))
        alone = torch.stack([loss(head, teacher, **labels(loss)) for head in heads])
        assert together.shape == (3,)
        assert_close(together, alone, rtol=1e-12, atol=0)
        weights = torch.tensor([1.0, 2.0, 3.0]).double()
        gradients = [torch.autograd.grad(value @ weights, heads) for value in (together, alone)]
        assert_close(*gradients, rtol=1e-12, atol=1e-15)

    @every_logit_loss
    def test_one_of_one(self, name):
        loss = build(name)
        student, teacher = inputs(name)
        assert loss(student[None], teacher, **labels(loss)).shape == (1,)


class TestGradient:
    @every_loss
    def test_goes_to_the_student_alone(self, name):
        loss = build(name).double()
        student, teacher = (tensor.requires_grad_() for tensor in inputs(name))
        loss(student, teacher, **labels(loss)).backward()
        assert student.grad.any()
        assert teacher.grad is None

    @every_loss
    def test_is_that_of_the_value(self, name):
        loss = build(name).double()
        # In training each step of CRD moves the bank.
        loss.train(name != 'crd')
        student, teacher = inputs(name)
        assert torch.autograd.gradcheck(
            lambda s: loss(s, teacher, **labels(loss)), student.requires_grad_()
        )

    @pytest.mark.parametrize('name', WITH_LAYERS)
    def test_reaches_every_parameter(self, name):
        loss = build(name).double()
        loss(*inputs(name), **labels(loss)).backward()
        parameters = dict(loss.named_parameters())
        assert all(parameter.grad.any() for parameter in parameters.values())
        assert parameters.keys() <= loss.state_dict().keys()


@pytest.mark.parametrize('name', WITH_LAYERS)
def test_state_loads_into_another(name):
    loss, other = build(name, seed=1).double(), build(name, seed=2).double()
    arguments, more = inputs(name), labels(loss)
    # Fills what a checkpoint holds beside the parameters.
    loss(*arguments, **more)
    expected = loss.eval()(*arguments, **more)
    assert not torch.isclose(other.eval()(*arguments, **more), expected, rtol=1e-3)
    other.load_state_dict(loss.state_dict(), strict=True)
    assert_close(other.eval()(*arguments, **more), expected, rtol=0, atol=0)


class TestHalfPrecision:
    @every_loss
    @half_precision
    def test_is_computed_in_float32(self, name, dtype):
        student, teacher = inputs(name, dtype=dtype)
        loss = build(name)
        with torch.autocast('cpu', dtype):
            value = loss(student, teacher, **labels(loss))
        expected = build(name)(student.float(), teacher.float(), **labels(loss))
        assert value.dtype == torch.float32
        assert_close(value, expected, rtol=0, atol=0)

    @every_loss
    @half_precision
    def test_large_inputs_do_not_overflow(self, name, dtype):
        """Their products are 90,000, above the range of float16."""
        student, teacher = ((300 * tensor).clamp(-300, 300) for tensor in inputs(name, dtype=dtype))
        assert student.max() == teacher.max() == 300
        student.requires_grad_()
        loss = build(name)
        with torch.autocast('cpu', dtype):
            value = loss(student, teacher, **labels(loss))
        value.backward()
        assert value > 1e-3
        assert value.isfinite()
        assert student.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


# CC compares neighbours of a batch, and CRD's negatives are a function of its order.
@pytest.mark.parametrize('name', [name for name in LOSSES if name not in ('cc', 'crd')])
def test_order_of_samples_does_not_matter(name):
    loss = build(name).double()
    order = [3, 0, 4, 1, 2]
    expected = loss(*inputs(name), **labels(loss))
    shuffled = loss(
        *(tensor[order] for tensor in inputs(name)),
        **{key: label[order] for key, label in labels(loss).items()},
    )
    assert_close(shuffled, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize('name', ['kd', 'ls', 'dkd', 'dist', 'dfra', 'dfra_ls', 'rkd'])
def test_an_equal_student_has_nothing_to_learn(name):
    loss = build(name)
    teacher = inputs(name)[1]
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher, **labels(loss))
    value.backward()
    # The authors of DIST add 1e-8 to a product of norms.
    tolerance = 1e-5 if name == 'dist' else 1e-12
    assert abs(value) < tolerance
    assert student.grad.abs().max() < tolerance


class TestBatchOfOne:
    @pytest.mark.parametrize('name', [name for name in LOSSES if name != 'rsd'])
    def test_is_finite(self, name):
        loss = build(name).double()
        student, teacher = inputs(name, batch=1)
        value = loss(student.requires_grad_(), teacher, **labels(loss, batch=1))
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())

    @pytest.mark.parametrize('name', ['rkd', 'cc', 'rsd_plain', 'dist'])
    def test_where_samples_are_compared_is_zero(self, name):
        loss = losses.DISTLoss(beta=0.0) if name == 'dist' else build(name).double()
        student, teacher = inputs(name, batch=1)
        value = loss(student.requires_grad_(), teacher)
        value.backward()
        assert value == 0
        assert not student.grad.any()


class TestErrors:
    def message(self, name, student, teacher, **more):
        loss = build(name)
        with pytest.raises(ConfigError) as caught:
            loss(torch.zeros(student), torch.zeros(teacher), **labels(loss) | more)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    @every_logit_loss
    @pytest.mark.parametrize(
        ('student', 'teacher'),
        [
            ((5, 4), (5, 6)),
            ((5, 7), (3, 7)),
            ((2, 5, 7), (3, 7)),
            ((2, 5, 7), (2, 5, 7)),
            ((1, 2, 5, 7), (5, 7)),
            ((5, 4, 2, 2), (5, 6, 2, 2)),
            ((7,), (7,)),
        ],
    )
    def test_logits(self, name, student, teacher):
        message = self.message(name, student, teacher)
        assert message.startswith(f'logits: student {student}, teacher {teacher}: must be')

    @pytest.mark.parametrize('name', VECTOR_LOSSES)
    @pytest.mark.parametrize(
        ('student', 'teacher'),
        [
            ((5, 4), (3, 6)),
            ((5, 4), (1, 6)),
            ((5, 4, 2, 2), (5, 6, 2, 2)),
            ((5, 9, 4), (5, 9, 6)),
            ((5, 4), (5, 9, 6)),
            ((4,), (6,)),
        ],
    )
    def test_features(self, name, student, teacher):
        message = self.message(name, student, teacher)
        assert message.startswith(f'features: student {student}, teacher {teacher}: must be')

    @pytest.mark.parametrize('batch', [1, 3])
    def test_hints_of_another_batch(self, batch):
        self.message('fitnet', (5, STUDENT_WIDTH, 2, 2), (batch, TEACHER_WIDTH, 2, 2))

    @pytest.mark.parametrize('name', ['dkd', 'ofa', 'crd'])
    def test_labels_of_another_batch(self, name):
        self.message(name, *shapes(name), **labels(build(name), batch=1))


@pytest.mark.parametrize('name', [name for name in LOSSES if name not in WITH_LAYERS])
def test_without_layers_has_no_state(name):
    loss = build(name)
    loss(*inputs(name), **labels(loss))
    assert not loss.state_dict()
