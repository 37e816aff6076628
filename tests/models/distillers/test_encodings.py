"""The forms in which a teacher cache stores a tensor."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from mldr_kd_mm.models.distillers.encodings import (
    Dense,
    TopKLogits,
    encoding_of,
    probability_error,
)


def logits(samples=5, classes=1000, scale=3.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, (samples, classes)).astype(np.float32)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_dense(dtype):
    values = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    encoding = Dense((4, 2), np.dtype(dtype))
    packed = encoding.pack(values)
    assert packed.shape == (3, encoding.num_bytes) == (3, 8 * np.dtype(dtype).itemsize)
    assert np.array_equal(encoding.unpack(packed), values.astype(dtype))


@pytest.mark.parametrize('classes', [3, 1000, 70_000])
@pytest.mark.parametrize('k', [1, 2])
def test_keeps_the_largest_logits_and_the_mass_of_the_others(classes, k):
    exact = logits(classes=classes)
    encoding = TopKLogits((classes,), k, np.dtype(np.float32))
    packed = encoding.pack(exact)
    assert packed.shape == (5, encoding.num_bytes)
    stored = encoding.unpack(packed)
    assert stored.dtype == np.float32
    largest = np.argsort(exact, axis=1)[:, -k:]
    for wanted, got in ((exact, stored), (softmax(exact, 1), softmax(stored, 1))):
        wanted, got = (np.take_along_axis(each, largest, 1) for each in (wanted, got))
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
    for row, top in zip(stored, largest, strict=True):
        assert len({*np.delete(row, top).tolist()}) == 1


def test_size():
    """Of ImageNet's 1,000 classes, 32 logits take 5 % of the space of all."""
    encoding = TopKLogits((1000,), 32, np.dtype(np.float32))
    assert encoding.num_bytes == 33 * 4 + 32 * 2
    assert TopKLogits((1000,), 32, np.dtype(np.float16)).num_bytes == 33 * 2 + 32 * 2
    assert TopKLogits((70_000,), 32, np.dtype(np.float32)).num_bytes == 33 * 4 + 32 * 4


def test_error_is_of_the_others_alone():
    exact = logits()
    stored = TopKLogits((1000,), 900, np.dtype(np.float32))
    few = TopKLogits((1000,), 10, np.dtype(np.float32))
    errors = [probability_error(exact, each.unpack(each.pack(exact))) for each in (stored, few)]
    assert (errors[0] < 1e-3).all() and (errors[1] > 0.01).all() and (errors[1] < 1).all()
    assert probability_error(exact, exact + 7).max() < 1e-6


def test_large_logits_do_not_overflow():
    exact = logits(scale=300.0)
    encoding = TopKLogits((1000,), 5, np.dtype(np.float32))
    assert np.isfinite(encoding.unpack(encoding.pack(exact))).all()


def test_encoding_of():
    assert encoding_of(dict(shape=[7, 2]), np.dtype(np.float16)) == Dense((7, 2), np.float16)
    found = encoding_of(dict(shape=[7], top_k=3), np.dtype(np.float32))
    assert found == TopKLogits((7,), 3, np.dtype(np.float32))
