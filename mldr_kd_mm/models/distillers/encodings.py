"""How a teacher cache stores the tensor of a sample: as it is, or only the largest logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Dense(NamedTuple):
    """All numbers of a tensor.

    Attributes:
        shape: Shape for one sample.
        dtype: Type of the numbers, float16 or float32.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes for one sample."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def pack(self, values: np.ndarray) -> np.ndarray:
        """Pack values (B, ...) into bytes (B, N)."""
        packed = np.ascontiguousarray(values.astype(self.dtype)).reshape(len(values), -1)
        return packed.view(np.uint8)

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """Return the values (B, ...)."""
        return packed.view(self.dtype).reshape(len(packed), *self.shape)


class TopKLogits(NamedTuple):
    """The k largest logits of each sample; the other classes share their probability evenly.

    The probabilities of the k classes are exact, and so is the sum of all others. A temperature
    other than 1 changes that sum, so there the probabilities are approximate.

    Attributes:
        shape: (C,), the number of classes.
        k: Number of logits to keep, below C.
        dtype: Type of the values, float16 or float32.
    """

    shape: tuple[int]
    k: int
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes for one sample."""
        return (self.k + 1) * self.dtype.itemsize + self.k * self._index_type.itemsize

    def pack(self, logits: np.ndarray) -> np.ndarray:
        """Pack logits (B, C) into bytes (B, N)."""
        order = np.sort(np.argpartition(-logits, self.k - 1, axis=1)[:, : self.k], axis=1)
        largest = np.take_along_axis(logits, order, axis=1)
        others = logits.copy()
        np.put_along_axis(others, order, -np.inf, axis=1)
        shift = others.max(1, keepdims=True)
        mass = np.exp(others - shift).sum(1, keepdims=True)
        rest = shift + np.log(mass) - np.log(self.num_classes - self.k)
        values = np.concatenate([largest, rest], axis=1).astype(self.dtype)
        parts = (values, order.astype(self._index_type))
        return np.concatenate([part.view(np.uint8) for part in parts], axis=1)

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """Return the logits (B, C) in float32."""
        split = (self.k + 1) * self.dtype.itemsize
        values = np.ascontiguousarray(packed[:, :split]).view(self.dtype).astype(np.float32)
        order = np.ascontiguousarray(packed[:, split:]).view(self._index_type)
        logits = np.repeat(values[:, -1:], self.num_classes, axis=1)
        np.put_along_axis(logits, order.astype(np.int64), values[:, :-1], axis=1)
        return logits

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.shape[0]

    @property
    def _index_type(self) -> np.dtype:
        return np.dtype(np.uint16 if self.num_classes <= 2**16 else np.uint32)


def encoding_of(output: Mapping[str, Any], dtype: np.dtype) -> Dense | TopKLogits:
    """Return the encoding of an output.

    Args:
        output: ``shape`` of the tensor for one sample, and ``top_k`` if only as many logits are
            stored.
        dtype: Type of the numbers.
    """
    shape = tuple(output['shape'])
    return TopKLogits(shape, output['top_k'], dtype) if 'top_k' in output else Dense(shape, dtype)


def probability_error(exact: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Return the fraction of the probability that moved to other classes (B,).

    This is the total variation distance of the softmaxes, between 0 and 1.

    Args:
        exact: Logits (B, C).
        stored: Logits (B, C).
    """
    return np.abs(_softmax(exact) - _softmax(stored)).sum(1) / 2


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)
