"""Random inputs of losses, and scalar functions that the reference implementations share."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

many = settings(max_examples=30, deadline=None)


def normal(*shape: int, scale: float = 2.0, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


@st.composite
def logit_pairs(draw, min_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw logits (B, C) of a student and a teacher, small enough for Python loops."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(min_classes, 5)))
    logits = arrays(np.float64, shape, elements=st.floats(-6, 6, width=16))
    return torch.from_numpy(draw(logits)), torch.from_numpy(draw(logits))


@st.composite
def labelled_pairs(draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw logits (B, C) of both models, and labels (B,)."""
    student, teacher = draw(logit_pairs())
    batch, classes = student.shape
    labels = st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch)
    return student, teacher, torch.tensor(draw(labels))


@st.composite
def feature_pairs(draw, same_width=False) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features (B, D_s) and (B, D_t) in multiples of 1/8: equal or clearly different."""
    batch, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    other_width = width if same_width else draw(st.integers(1, 4))
    eighths = st.integers(-40, 40).map(lambda number: number / 8)
    return tuple(
        torch.from_numpy(draw(arrays(np.float64, (batch, size), elements=eighths)))
        for size in (width, other_width)
    )


def log_softmax(numbers: list[float]) -> list[float]:
    largest = max(numbers)
    total = math.log(math.fsum(math.exp(x - largest) for x in numbers)) + largest
    return [x - total for x in numbers]


def softmax(numbers: list[float]) -> list[float]:
    return [math.exp(x) for x in log_softmax(numbers)]


def kl(student: list[float], teacher: list[float]) -> float:
    """Return KL(teacher || student) of the softmax of both."""
    log_q, log_p = log_softmax(student), log_softmax(teacher)
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def smooth_l1(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def close(value: torch.Tensor, expected: float) -> bool:
    """Return whether a float64 value equals the reference up to rounding."""
    return math.isclose(value.item(), expected, rel_tol=1e-9, abs_tol=1e-11)
