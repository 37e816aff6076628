"""CRD against its definition, and its memory bank: updates, and equality across processes."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from helpers import run_ranks
from hypothesis import given
from hypothesis import strategies as st
from loss_helpers import many, normal
from torch import Tensor
from torch.testing import assert_close

from mldr_kd_mm import ConfigError
from mldr_kd_mm.models.losses import CRDLoss

WIDTHS = dict(student_width=4, teacher_width=6)
BANKS = ('student_bank', 'teacher_bank')


def build(seed: int = 0, num_samples: int = 12, **kwargs) -> CRDLoss:
    torch.manual_seed(seed)
    arguments = dict(num_samples=num_samples, negatives=5, dim=3) | WIDTHS | kwargs
    return CRDLoss(**arguments).double()


def batch(*index: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return features of both models and the samples' indices."""
    size = len(index)
    return normal(size, 4, seed=seed), normal(size, 6, seed=seed + 100), torch.tensor(index)


def saved(loss: CRDLoss) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loss.state_dict().items()}


def unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [x / length for x in vector]


def dot(one: list[float], other: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


class Naive:
    """Reference implementation with scalars, for the batches of any number of processes."""

    def __init__(self, loss: CRDLoss) -> None:
        self.loss = loss
        self.banks = [getattr(loss, name).tolist() for name in BANKS]
        self.normalizers = None

    def embed(self, features: Tensor, whose: str) -> list[list[float]]:
        layer = getattr(self.loss, f'embed_{whose}')
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        return [
            unit([dot(row, f) + b for row, b in zip(weight, bias, strict=True)])
            for f in features.tolist()
        ]

    def step(self, *batches: tuple[Tensor, Tensor, Tensor]) -> list[float]:
        """Return the loss of each process, then update the bank with all batches."""
        student_bank, teacher_bank = self.banks
        gathered, similar = [], []
        for student, teacher, index in batches:
            entries = self.loss._draw(index).tolist()
            students, teachers = self.embed(student, 'student'), self.embed(teacher, 'teacher')
            gathered += zip(index.tolist(), students, teachers, strict=True)
            similar.append(
                [
                    [
                        [math.exp(dot(v, bank[j]) / self.loss.temperature) for j in row]
                        for v, row in zip(embeddings, entries, strict=True)
                    ]
                    for embeddings, bank in ((students, teacher_bank), (teachers, student_bank))
                ]
            )
        if self.normalizers is None:
            self.normalizers = [self.first_normalizer([two[m] for two in similar]) for m in (0, 1)]
        values = [sum(map(self.contrast, two, self.normalizers)) for two in similar]
        self.move(gathered)
        return values

    def first_normalizer(self, processes: list[list[list[float]]]) -> float:
        """Return the average of the processes' means."""
        means = [
            math.fsum(math.fsum(row) for row in rows) / sum(map(len, rows)) for rows in processes
        ]
        return self.loss.num_samples * math.fsum(means) / len(means)

    def contrast(self, rows: list[list[float]], normalizer: float) -> float:
        noise = self.loss.negatives / self.loss.num_samples
        total = 0.0
        for row in rows:
            critic = [x / normalizer / (x / normalizer + noise) for x in row]
            total -= math.log(critic[0]) + math.fsum(math.log(1 - h) for h in critic[1:])
        return total / len(rows)

    def move(self, gathered: list[tuple[int, list[float], list[float]]]) -> None:
        """Update the bank; the first embedding of a repeated sample is used."""
        moved = set()
        for i, *embeddings in gathered:
            if i in moved:
                continue
            moved.add(i)
            for bank, embedding in zip(self.banks, embeddings, strict=True):
                keep = self.loss.momentum
                bank[i] = unit(
                    [keep * m + (1 - keep) * v for m, v in zip(bank[i], embedding, strict=True)]
                )

    def check(self, state: dict[str, Tensor]) -> None:
        found = [state[name] for name in BANKS]
        expected = [torch.tensor(bank, dtype=torch.float64) for bank in self.banks]
        assert_close(found, expected, rtol=1e-9, atol=1e-12)
        expected = torch.tensor(self.normalizers, dtype=torch.float64)
        assert_close(state['normalizers'], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(),
        dict(temperature=0.5, momentum=0.0),
        dict(num_samples=30, negatives=29, momentum=0.9, dim=5),
        dict(negatives=1, dim=2),
    ],
    ids=str,
)
def test_is_its_definition(arguments):
    loss = build(**arguments)
    naive = Naive(loss)
    steps = [batch(3, 7, 0, seed=1), batch(11, 3, seed=2), batch(7, 8, 9, 3, 1, seed=3)]
    for step in steps:
        (expected,) = naive.step(step)
        assert loss(*step).item() == pytest.approx(expected, rel=1e-9)
        naive.check(loss.state_dict())


def test_is_learned():
    """Training moves the student's embedding towards the teacher's entry of the same sample."""
    loss = build(num_samples=8, dim=16, temperature=0.2)
    step = batch(*range(8))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        values.append(loss(*step))
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.8 * values[0]


class TestNegatives:
    @many
    @given(st.data())
    def test_are_other_samples(self, data):
        num_samples = data.draw(st.integers(2, 40))
        negatives = data.draw(st.integers(1, num_samples - 1))
        indices = st.lists(st.integers(0, num_samples - 1), min_size=1, max_size=6)
        index = torch.tensor(data.draw(indices))
        entries = build(num_samples=num_samples, negatives=negatives)._draw(index)
        assert entries.shape == (len(index), 1 + negatives)
        assert (entries[:, 0] == index).all()
        assert (entries[:, 1:] != index[:, None]).all()
        assert entries.min() >= 0
        assert entries.max() < num_samples

    def test_are_any_other_sample(self):
        loss = build(num_samples=6, negatives=5)
        drawn = torch.cat([loss._draw(torch.tensor([i, j])) for i in range(6) for j in range(6)])
        for sample in range(6):
            of_sample = drawn[drawn[:, 0] == sample][:, 1:]
            assert set(of_sample.flatten().tolist()) == set(range(6)) - {sample}

    def test_are_a_function_of_the_indices(self):
        index = torch.tensor([5, 2, 9])
        drawn = build(seed=0)._draw(index)
        torch.manual_seed(99)
        assert torch.equal(build(seed=1)._draw(index.clone()), drawn)

    def test_of_another_batch_are_others(self):
        loss = build(num_samples=1000, negatives=100)
        one, other = loss._draw(torch.tensor([5, 2, 9])), loss._draw(torch.tensor([5, 2, 10]))
        assert (one[:2, 1:] == other[:2, 1:]).float().mean() < 0.1
        assert (one[0, 1:] == one[1, 1:]).float().mean() < 0.1

    def test_leave_the_global_random_numbers_alone(self):
        loss = build()
        before = torch.get_rng_state()
        loss(*batch(3, 7, 0))
        assert torch.equal(torch.get_rng_state(), before)


class TestBank:
    def test_starts_as_the_authors_release(self):
        """The entries are uniform, and rows have about unit length."""
        loss = build(num_samples=2000, dim=32)
        for name in BANKS:
            bank = getattr(loss, name)
            assert bank.shape == (2000, 32)
            assert bank.abs().max() <= math.sqrt(3 / 32)
            assert bank.norm(dim=-1).mean().item() == pytest.approx(1, abs=0.02)
        assert not torch.equal(loss.student_bank, loss.teacher_bank)

    def test_moves_at_the_rows_of_the_batch_alone(self):
        loss = build()
        before = saved(loss)
        loss(*batch(3, 7, 0))
        for name in BANKS:
            changed = (getattr(loss, name) != before[name]).any(-1)
            assert changed.nonzero().flatten().tolist() == [0, 3, 7]

    def test_moves_in_training_alone(self):
        loss = build()
        loss(*batch(1, 2))
        before = saved(loss)
        loss.eval()
        loss(*batch(3, 7, 0))
        assert_close(saved(loss), before, rtol=0, atol=0)

    def test_keeps_unit_length(self):
        loss = build(momentum=0.9)
        for seed in range(5):
            loss(*batch(3, 7, 0, seed=seed))
        for name in BANKS:
            lengths = getattr(loss, name)[[3, 7, 0]].norm(dim=-1)
            assert_close(lengths, torch.ones_like(lengths), rtol=1e-12, atol=0)

    @pytest.mark.parametrize('momentum', [0.0, 0.25, 0.9])
    def test_keeps_the_share_of_the_momentum(self, momentum):
        loss = build(momentum=momentum)
        student, teacher, index = batch(3, 7)
        embedded = {
            'student_bank': torch.nn.functional.normalize(loss.embed_student(student), dim=-1),
            'teacher_bank': torch.nn.functional.normalize(loss.embed_teacher(teacher), dim=-1),
        }
        before = saved(loss)
        loss(student, teacher, index)
        for name, embedding in embedded.items():
            moved = momentum * before[name][index] + (1 - momentum) * embedding
            expected = moved / moved.norm(dim=-1, keepdim=True)
            assert_close(getattr(loss, name)[index], expected.detach(), rtol=1e-9, atol=1e-12)

    def test_of_a_sample_that_is_repeated_the_first_counts(self):
        """A sampler may repeat samples to fill the last batch."""
        once, twice = build(), build()
        student, teacher, _ = batch(3, 7, 3, 3)
        once(student[:2], teacher[:2], torch.tensor([3, 7]))
        twice(student, teacher, torch.tensor([3, 7, 3, 3]))
        for name in BANKS:
            assert_close(getattr(twice, name), getattr(once, name), rtol=1e-12, atol=1e-15)

    def test_the_loss_is_of_the_bank_before_it_moves(self):
        """Otherwise a step would be compared with its own embedding."""
        loss = build(momentum=0.0)
        loss(*batch(1, 2))
        step = batch(3, 7, 0)
        expected = loss.eval()(*step)
        assert_close(loss.train()(*step), expected, rtol=1e-12, atol=0)
        assert not torch.isclose(loss.eval()(*step), expected, rtol=1e-3)

    def test_gives_no_gradient(self):
        loss = build()
        student, teacher, index = batch(3, 7, 0)
        loss(student.requires_grad_(), teacher, index).backward()
        assert student.grad.any()
        assert not any(getattr(loss, name).requires_grad for name in BANKS)

    def test_two_forwards_before_one_backward(self):
        """The bank is updated in place, which must not change the first gradient."""
        loss = build()
        first, second = batch(3, 7, 0), batch(3, 1, seed=1)
        value = loss(*first) + loss(*second)
        value.backward()
        assert all(parameter.grad.any() for parameter in loss.parameters())


class TestNotFinite:
    """A non-finite step may be skipped, but only after the bank has been updated."""

    @pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
    def test_feature_does_not_enter_the_bank(self, value):
        loss = build()
        loss(*batch(1, 2))
        before = saved(loss)
        student, teacher, index = batch(3, 7, 0)
        student[1, 2] = teacher[0, 3] = value
        loss(student, teacher, index)
        for name, expected in zip(BANKS, ([0, 3], [0, 7]), strict=True):
            changed = (getattr(loss, name) != before[name]).any(-1)
            assert changed.nonzero().flatten().tolist() == expected
        assert_close(loss.normalizers, before['normalizers'], rtol=0, atol=0)
        assert loss(*batch(3, 7, 0)).isfinite()

    def test_weight_does_not_enter_the_bank(self):
        loss = build()
        before = saved(loss)
        torch.nn.init.constant_(loss.embed_student.weight, math.nan)
        loss(*batch(3, 7, 0))
        assert_close(loss.student_bank, before['student_bank'], rtol=0, atol=0)

    @pytest.mark.parametrize('value', [math.nan, math.inf])
    def test_first_batch_does_not_fix_the_normalizers(self, value):
        loss = build()
        student, teacher, index = batch(3, 7, 0)
        student[1, 2] = teacher[1, 2] = value
        loss(student, teacher, index)
        assert not loss.normalizers.any()
        assert loss(*batch(1, 2, seed=1)).isfinite()
        assert (loss.normalizers > 0).all()

    def test_similarity_does_not_fix_the_normalizers(self):
        """exp(similarity / temperature) overflows the dtype."""
        loss = build()
        loss._set_normalizers(torch.full((2, 3, 6), math.inf))
        assert not loss.normalizers.any()


class TestNormalizers:
    def test_are_fixed_by_the_first_batch(self):
        loss = build()
        assert not loss.normalizers.any()
        loss(*batch(3, 7, 0))
        fixed = loss.normalizers.clone()
        assert (fixed > 0).all()
        for seed in range(3):
            loss(*batch(1, 2, 3, seed=seed))
        assert torch.equal(loss.normalizers, fixed)

    def test_are_not_fixed_by_validation(self):
        loss = build().eval()
        value = loss(*batch(3, 7, 0))
        assert value.isfinite()
        assert not loss.normalizers.any()


def test_resumes_bit_for_bit():
    steps = [batch(3, 7, 0, seed=1), batch(11, 3, seed=2), batch(7, 8, 3, seed=3)]
    loss = build(seed=0)
    loss(*steps[0])
    checkpoint = io.BytesIO()
    torch.save(loss.state_dict(), checkpoint)
    expected = [loss(*step) for step in steps[1:]]

    checkpoint.seek(0)
    resumed = build(seed=5)
    assert resumed.load_state_dict(torch.load(checkpoint), strict=True)
    torch.manual_seed(77)
    assert_close([resumed(*step) for step in steps[1:]], expected, rtol=0, atol=0)
    assert_close(resumed.state_dict(), loss.state_dict(), rtol=0, atol=0)


def test_the_lowest_temperature_is_finite():
    loss = build(teacher_width=4, temperature=0.02, momentum=0.0).float()
    loss.embed_teacher.load_state_dict(loss.embed_student.state_dict())
    features = normal(3, 4, dtype=torch.float32)
    for _ in range(2):
        value = loss(features, features, torch.arange(3))
    assert value.isfinite()
    with pytest.raises(ConfigError, match='^temperature=0.01: must be a number of at least 0.02$'):
        build(temperature=0.01)


class TestErrors:
    @pytest.mark.parametrize('index', [12, -1])
    def test_index_outside_the_training_set(self, index):
        loss = build()
        before = saved(loss)
        with pytest.raises(ConfigError) as caught:
            loss(*batch(0, index))
        assert str(caught.value) == (
            f'num_samples=12: must be the size of the training set; a sample has index {index}'
        )
        assert_close(saved(loss), before, rtol=0, atol=0)

    @pytest.mark.parametrize(
        ('wrong', 'message'),
        [
            (dict(negatives=12), 'negatives=12: must be at most num_samples - 1 = 11'),
            (dict(num_samples=0), 'num_samples=0: must be a positive integer'),
            (dict(dim=True), 'dim=True: must be a positive integer'),
            (dict(momentum=1.0), 'momentum=1.0: must be at least 0 and below 1'),
            (dict(momentum=False), 'momentum=False: must be at least 0 and below 1'),
            (dict(temperature=math.inf), 'temperature=inf: must be a number of at least 0.02'),
            (dict(student_width=None), 'student_width=None: must be the width of the feature'),
        ],
        ids=str,
    )
    def test_arguments(self, wrong, message):
        with pytest.raises(ConfigError) as caught:
            build(**wrong)
        assert str(caught.value).startswith(message)


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory):
    """Return three steps of two real processes, and those of the reference."""
    folder = tmp_path_factory.mktemp('crd')
    loss = build()
    naive = Naive(loss)
    batches = [
        # Batches of equal size, then of different sizes with a common sample and sample 0, which
        # zero padding of the smaller batch would update.
        [batch(3, 7, 0, seed=1), batch(11, 3, seed=2), batch(7, seed=3)],
        [batch(1, 2, 10, seed=4), batch(4, 3, 5, 6, seed=5), batch(8, 7, 0, seed=6)],
    ]
    arguments = dict(num_samples=12, negatives=5, dim=3, **WIDTHS)
    torch.save(
        dict(arguments=arguments, state=loss.state_dict(), batches=batches), folder / 'given.pt'
    )
    worker = Path(__file__).with_name('crd_worker.py')
    # Hashes of strings differ between processes, so they must not determine the negatives.
    run_ranks(*((worker, rank, folder) for rank in (0, 1)))
    found = [torch.load(folder / f'found{rank}.pt') for rank in (0, 1)]
    expected = list(zip(*[naive.step(*step) for step in zip(*batches, strict=True)], strict=True))
    return loss.state_dict(), found, naive, expected


class TestTwoProcesses:
    def test_have_the_same_state(self, two_processes):
        one, other = (found['state'] for found in two_processes[1])
        assert_close(one, other, rtol=0, atol=0)

    def test_every_sample_of_either_moved(self, two_processes):
        before, (found, _) = two_processes[:2]
        for name in BANKS:
            changed = (found['state'][name] != before[name]).any(-1)
            assert changed.nonzero().flatten().tolist() == [*range(9), 10, 11]

    def test_are_the_definition(self, two_processes):
        _, found, naive, expected = two_processes
        for process, values in zip(found, expected, strict=True):
            naive.check(process['state'])
            assert process['values'] == pytest.approx(values, rel=1e-9)
