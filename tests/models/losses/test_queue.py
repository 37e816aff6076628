"""The loss of relations to a queue: its definition, the order of the queue, and two processes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import many, normal
from torch import Tensor, nn
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import QueueLoss

WIDTHS = dict(student_width=4, teacher_width=6)


def build(size: int = 7, seed: int = 0, **kwargs) -> QueueLoss:
    torch.manual_seed(seed)
    return QueueLoss(size, **WIDTHS | kwargs).double()


def batch(size: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    return normal(size, 4, seed=seed), normal(size, 6, seed=seed + 100)


def unit(features: Tensor) -> np.ndarray:
    found = features.numpy()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class Naive:
    """Reference implementation with NumPy and a list, for one process."""

    def __init__(self, loss: QueueLoss) -> None:
        self.loss, self.queue = loss, []

    def step(self, student: Tensor, teacher: Tensor) -> float:
        self.queue = [*self.queue, *unit(teacher)][-self.loss.size :]
        projected = unit(student @ self.loss.project.weight.detach().T)
        p, q = (
            np.exp(f @ np.stack(self.queue).T / self.loss.temperature)
            for f in (unit(teacher), projected)
        )
        p, q = (each / each.sum(1, keepdims=True) for each in (p, q))
        return float((p * np.log(p / q)).sum(1).mean())


def stored(loss: QueueLoss) -> np.ndarray:
    """Return the entries of a full queue, the oldest first."""
    return torch.roll(loss.queue, -int(loss.position), 0).numpy()


@pytest.mark.parametrize('arguments', [dict(), dict(temperature=0.5), dict(size=1), dict(size=64)])
def test_is_its_definition(arguments):
    """While the queue fills, when it is full, and with a batch that is larger than it."""
    loss = build(**arguments)
    naive = Naive(loss)
    for seed, size in enumerate([3, 1, 2, 5, 9, 4]):
        step = batch(size, seed)
        # In evaluation mode a step has the same value, but is not stored.
        in_evaluation = loss.eval()(*step)
        value = loss.train()(*step)
        assert value.item() == pytest.approx(naive.step(*step), rel=1e-9, abs=1e-12)
        assert_close(in_evaluation, value, rtol=1e-12, atol=0)


@many
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 9))
def test_is_first_in_first_out(sizes, size):
    loss = build(size)
    steps = [batch(count, seed) for seed, count in enumerate(sizes)]
    for step in steps:
        loss(*step)
    newest = np.concatenate([unit(teacher) for _, teacher in steps])[-size:]
    found = stored(loss)
    if len(newest) < size:  # not full yet
        found = loss.queue[: len(newest)].numpy()
        assert not loss.queue[len(newest) :].any()
    assert_close(found, newest, rtol=1e-12, atol=0)


def test_an_equal_student_has_nothing_to_learn():
    loss = build(student_width=6)
    nn.init.eye_(loss.project.weight)
    for seed in range(3):
        teacher = batch(seed=seed)[1]
        student = teacher.clone().requires_grad_()
        value = loss(student, teacher)
        value.backward()
        assert abs(value) < 1e-12 and student.grad.abs().max() < 1e-12


def test_order_of_the_queue_does_not_matter():
    loss, other = build(), build()
    for seed in range(3):
        loss(*batch(seed=seed))
    other.load_state_dict(loss.state_dict())
    # The next batch replaces the two oldest entries, at places 2 and 3.
    other.queue[[0, 1, 4, 5, 6]] = loss.queue[[5, 4, 6, 0, 1]]
    step = batch(2, seed=9)
    assert_close(other(*step), loss(*step), rtol=1e-12, atol=0)


def test_gradient_reaches_the_student_alone_and_two_forwards_may_come_first():
    """With gradient accumulation by one sum, the queue moves before the first backward pass."""
    together, apart = build(), build()
    steps = [batch(seed=1), batch(seed=2)]
    sum(together(*step) for step in steps).backward()
    for step in steps:
        apart(*step).backward()
    assert_close(together.project.weight.grad, apart.project.weight.grad, rtol=1e-12, atol=0)
    assert not together.queue.requires_grad


def test_parts_of_a_batch_fill_the_queue_as_the_whole():
    """As with gradient accumulation."""
    whole, parts = build(), build()
    student, teacher = batch(6)
    whole(student, teacher)
    for part in range(0, 6, 2):
        parts(student[part : part + 2], teacher[part : part + 2])
    assert_close(parts.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 0.0])
def test_what_is_no_direction_stays_out(value):
    loss = build()
    student, teacher = batch()
    teacher[1] = value
    loss(student, teacher)
    assert loss.queue.any(1).tolist() == [True, False, True] + [False] * 4
    assert loss(*batch(seed=1)).isfinite()


def test_without_any_entry_is_zero():
    loss = build()
    student = batch()[0].requires_grad_()
    value = loss(student, torch.zeros(3, 6).double())
    value.backward()
    assert value == 0 and not student.grad.any()


def test_resumes_bit_for_bit():
    loss, file = build(), io.BytesIO()
    loss(*batch(5, seed=1))
    torch.save(loss.state_dict(), file)
    steps = [batch(4, seed=2), batch(3, seed=3)]
    expected = [loss(*step) for step in steps]
    file.seek(0)
    resumed = build(seed=5)
    resumed.load_state_dict(torch.load(file), strict=True)
    assert_close([resumed(*step) for step in steps], expected, rtol=0, atol=0)
    assert_close(resumed.state_dict(), loss.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(size=0), 'size=0: must be a positive integer'),
        (dict(size=2.5), 'size=2.5: must be a positive integer'),
        (dict(temperature=0), 'temperature=0: must be a positive number'),
        (dict(temperature=-0.1), 'temperature=-0.1: must be a positive number'),
        (dict(teacher_width=None), 'teacher_width=None: must be the width of the feature'),
    ],
    ids=str,
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ConfigError) as caught:
        build(**wrong)
    assert str(caught.value).startswith(message)


def test_two_processes_are_one(tmp_path):
    """Queues are equal, and so are the gradients, to those of the joined batches."""
    loss = build()
    batches = [[batch(2, seed=1), batch(3, seed=2)], [batch(2, seed=3), batch(3, seed=4)]]
    arguments = dict(size=7, **WIDTHS)
    given = dict(arguments=arguments, state=loss.state_dict(), batches=batches)
    torch.save(given, tmp_path / 'given.pt')
    worker = Path(__file__).with_name('queue_worker.py')
    run_ranks(*((worker, rank, tmp_path) for rank in (0, 1)))
    one, other = (torch.load(tmp_path / f'found{rank}.pt') for rank in (0, 1))
    for number, parts in enumerate(zip(*batches, strict=True)):
        loss.zero_grad()
        value = loss(*map(torch.cat, zip(*parts, strict=True)))
        value.backward()
        mean = (one['values'][number] + other['values'][number]) / 2
        assert_close(mean, value, rtol=1e-12, atol=0)
    for found in (one, other):
        assert_close(found['state'], loss.state_dict(), rtol=1e-12, atol=0)
        assert_close(found['gradient'], loss.project.weight.grad, rtol=1e-9, atol=1e-12)
