"""Properties of every registered loss. A new loss is picked up from ``losses.__all__``."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import many, normal
from mmengine.config import Config
from torch import Tensor, nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models import losses
from mldr_kd_mm.registry import MODELS

METHODS = sorted((Path(__file__).parents[3] / 'configs/_base_/methods').glob('*.py'))
BATCH, CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, SAMPLES = 5, 7, 4, 6, 20
WIDTHS = dict(student_width=STUDENT_WIDTH, teacher_width=TEACHER_WIDTH)
EQUAL_WIDTHS = dict(student_width=TEACHER_WIDTH, teacher_width=TEACHER_WIDTH)

# Arguments that make a loss smaller or its test stricter than its defaults.
ARGUMENTS = dict(
    CCLoss=dict(dim=8),
    CRDLoss=dict(num_samples=SAMPLES, negatives=6, dim=8),
    DFRALoss=dict(temperature=2.0),
    DISTLoss=dict(temperature=2.0),
    DKDLoss=dict(temperature=2.0),
    HCDLoss=dict(num_classes=CLASSES),
    InfoNCELoss=dict(dim=8),
    KDLoss=dict(temperature=4.0),
    OFALoss=dict(eps=1.5),
    QueueLoss=dict(size=8),
)
VARIANTS = {
    'DFRALoss standardised': dict(type='DFRALoss', standardize=True),
    'RSDLoss without decoupler': dict(type='RSDLoss', decoupler=False, **EQUAL_WIDTHS),
}


def takes(kind: str, argument: str) -> bool:
    return argument in inspect.signature(getattr(losses, kind)).parameters


def takes_labels(name: str) -> bool:
    return 'target' in inspect.signature(build(name).forward).parameters


def with_widths(config: dict) -> dict:
    widths = WIDTHS if config.get('decoupler', True) else EQUAL_WIDTHS
    return (widths if takes(config['type'], 'student_width') else {}) | config


def shipped_losses() -> list[dict]:
    """Return the configs of the losses in configs/_base_/methods."""
    methods = [Config.fromfile(path).method.to_dict() for path in METHODS]
    return [entry['loss'] for method in methods for entry in method['losses']]


SHIPPED = shipped_losses()
LOSSES = {
    kind: with_widths(
        next((config for config in SHIPPED if config['type'] == kind), dict(type=kind))
        | ARGUMENTS.get(kind, {})
    )
    for kind in losses.__all__
} | VARIANTS


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(copy.deepcopy(LOSSES[name]))


def kind_of(name: str) -> str:
    """Return what a loss compares."""
    kind = LOSSES[name]['type']
    if getattr(getattr(losses, kind), 'compares_logits', False):
        return 'logits'
    return 'maps' if takes(kind, 'student_grid') else 'vectors'


LOGIT_LOSSES = [name for name in LOSSES if kind_of(name) == 'logits']
VECTOR_LOSSES = [name for name in LOSSES if kind_of(name) == 'vectors']
# Losses with layers of their own, which are trained with the student.
WITH_LAYERS = [name for name in LOSSES if list(build(name).parameters())]


def shapes(name: str, batch: int = BATCH) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if kind_of(name) == 'logits':
        return (batch, CLASSES), (batch, CLASSES)
    width = LOSSES[name].get('student_width', STUDENT_WIDTH)
    if kind_of(name) == 'maps':
        return (batch, width, 4, 4), (batch, TEACHER_WIDTH, 2, 2)
    return (batch, width), (batch, TEACHER_WIDTH)


def labels(loss: nn.Module, batch: int = BATCH) -> dict[str, Tensor]:
    """Return what a loss reads beside the tensors that it compares."""
    every = dict(
        target=torch.tensor([0, 6, 3, 3, 1])[:batch],
        index=torch.arange(batch) * 3,
        student_logits=normal(BATCH, CLASSES, seed=8)[:batch],
        teacher_logits=normal(BATCH, CLASSES, seed=9)[:batch],
    )
    return {key: every[key] for key in every if key in inspect.signature(loss.forward).parameters}


def inputs(name: str, batch: int = BATCH, dtype=torch.float64, seed: int = 0) -> list[Tensor]:
    return [
        normal(*shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(shapes(name, batch))
    ]


every_loss = pytest.mark.parametrize('name', LOSSES)
every_logit_loss = pytest.mark.parametrize('name', LOGIT_LOSSES)
half_precision = pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)


def test_shipped_methods():
    """Every loss of configs/_base_/methods takes its tensors and gives a finite value."""
    assert {config['type'] for config in SHIPPED} <= {*losses.__all__}
    for config in SHIPPED:
        name = config['type'] + (' without decoupler' if 'decoupler' in config else '')
        classes = dict(num_classes=CLASSES) if takes(config['type'], 'num_classes') else {}
        loss = MODELS.build(with_widths(config) | classes)
        value = loss(*inputs(name, dtype=torch.float32), **labels(loss))
        assert value.isfinite() and value > 0, config


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
        # In training mode each call of these changes their bank or queue.
        loss.train(name not in ('CRDLoss', 'QueueLoss'))
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
    # A training step fills the state besides the parameters.
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
    def test_large_inputs_do_not_overflow(self, name):
        """Their products are 90,000, above the range of float16."""
        dtype = torch.float16
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


@pytest.mark.parametrize('name', [name for name in LOSSES if takes_labels(name)])
@many
@given(st.data())
def test_any_soft_label_leaves_the_loss_bounded_below(name, data):
    """Mixup and CutMix give such labels; a negative weight of a logarithm would have no bound."""
    shares = st.lists(st.integers(0, 8), min_size=CLASSES, max_size=CLASSES).filter(any)
    soft = torch.tensor(data.draw(st.lists(shares, min_size=BATCH, max_size=BATCH))).double()
    scale = data.draw(st.sampled_from([1.0, 10.0, 100.0]))
    seed = data.draw(st.integers(0, 9))
    student, teacher = (scale * tensor for tensor in inputs(name, seed=seed))
    for target in (soft / soft.sum(1, keepdim=True), soft / 8):
        loss = build(name).double()
        assert loss(student, teacher, **labels(loss) | dict(target=target)) >= 0


# CC compares neighbours of a batch, and CRD's negatives are a function of its order.
@pytest.mark.parametrize('name', [name for name in LOSSES if name not in ('CCLoss', 'CRDLoss')])
def test_order_of_samples_does_not_matter(name):
    loss = build(name).double()
    order = [3, 0, 4, 1, 2]
    expected = loss(*inputs(name), **labels(loss))
    shuffled = build(name).double()(
        *(tensor[order] for tensor in inputs(name)),
        **{key: label[order] for key, label in labels(loss).items()},
    )
    assert_close(shuffled, expected, rtol=1e-9, atol=0)


# The other losses have a term without the teacher, layers of their own, or read its decision alone.
@pytest.mark.parametrize('name', sorted({*LOGIT_LOSSES, 'RKDLoss'} - {'OFALoss', 'HardKDLoss'}))
def test_an_equal_student_has_nothing_to_learn(name):
    loss = build(name)
    teacher = inputs(name)[1]
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher, **labels(loss))
    value.backward()
    # The authors of DIST add 1e-8 to a product of norms.
    tolerance = 1e-5 if name == 'DISTLoss' else 1e-12
    assert abs(value) < tolerance
    assert student.grad.abs().max() < tolerance


class TestBatchOfOne:
    @pytest.mark.parametrize('name', [name for name in LOSSES if name != 'RSDLoss'])
    def test_is_finite(self, name):
        loss = build(name).double()
        student, teacher = inputs(name, batch=1)
        value = loss(student.requires_grad_(), teacher, **labels(loss, batch=1))
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())

    @pytest.mark.parametrize(
        'name', ['RKDLoss', 'CCLoss', 'RSDLoss without decoupler', 'DISTLoss', 'InfoNCELoss']
    )
    def test_where_samples_are_compared_is_zero(self, name):
        loss = losses.DISTLoss(beta=0.0) if name == 'DISTLoss' else build(name).double()
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
            ((2, 5, 7), (3, 7)),
            ((2, 5, 7), (2, 5, 7)),
            ((1, 2, 5, 7), (5, 7)),
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
            ((4,), (4,)),
            ((5, 4, 2, 2), (5, 6, 2, 2)),
            ((5, 4), (5, 9, 6)),
        ],
    )
    def test_features(self, name, student, teacher):
        if name in ('RKDLoss', 'HCDLoss') and max(len(student), len(teacher)) > 2:
            pytest.skip('RKD flattens maps and tokens, HCD pools them')
        message = self.message(name, student, teacher)
        assert message.startswith(f'features: student {student}, teacher {teacher}: must be')

    def test_maps_of_another_batch(self):
        self.message('FitNetLoss', (5, STUDENT_WIDTH, 2, 2), (3, TEACHER_WIDTH, 2, 2))

    @pytest.mark.parametrize('name', [name for name in LOSSES if labels(build(name))])
    def test_labels_of_another_batch(self, name):
        self.message(name, *shapes(name), **labels(build(name), batch=1))


@pytest.mark.parametrize('name', [name for name in LOSSES if name not in WITH_LAYERS])
def test_without_layers_has_no_state(name):
    loss = build(name)
    loss(*inputs(name), **labels(loss))
    assert not loss.state_dict()
