"""Read a pickle of arrays and plain containers without running what else it may hold."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from mmengine.fileio import get

from mldr_kd_mm.errors import ConfigError

# What a pickle asks for is answered by stand-ins, never by numpy itself: numpy.ndarray called with
# an object dtype takes bytes for pointers, and a dtype's state can make any array do so.


class _DType:
    """Stands in for ``numpy.dtype``, of numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        self.value = np.dtype(code)
        if self.value.kind not in 'biuf':
            raise ValueError(f'an array of dtype {code!r}, not of numbers')

    def __setstate__(self, state: tuple) -> None:
        byte_order = state[1]
        self.value = self.value.newbyteorder(byte_order)


class _Array:
    """Stands in for an array whose content follows: protocols up to 4."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        if isinstance(content, str):  # the byte strings of Python 2, which wrote the official files
            content = content.encode('latin1')
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order='CF'[is_fortran])


def _array_from_buffer(content: bytes, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(content, dtype.value).reshape(shape, order=order)


def _scalar(dtype: _DType, content: bytes) -> np.generic:
    return np.frombuffer(content, dtype.value)[0]


def _encode(text: str, _: str) -> bytes:
    """Stand in for how protocol 2 of Python 3 writes bytes: always as latin1."""
    return text.encode('latin1')


STAND_INS = {
    ('numpy', 'ndarray'): 'ndarray',  # only ever an argument of _reconstruct
    ('numpy', 'dtype'): _DType,
    ('_codecs', 'encode'): _encode,
}
for _core in ('numpy.core', 'numpy._core'):  # as numpy 1 and numpy 2 call it
    STAND_INS[f'{_core}.multiarray', '_reconstruct'] = _Array
    STAND_INS[f'{_core}.multiarray', 'scalar'] = _scalar
    STAND_INS[f'{_core}.numeric', '_frombuffer'] = _array_from_buffer


class _ArrayUnpickler(pickle.Unpickler):
    """Answers with ``STAND_INS`` and refuses every other global before it is imported."""

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(io.BytesIO(content), encoding='latin1')
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise ConfigError(
                f'{self.path}: refused, it asks for {module}.{name}, and a data set file may hold '
                'arrays and plain containers only'
            )
        return STAND_INS[module, name]


def load_dict(path: str) -> dict:
    """Return the dict of arrays, lists, numbers and strings that a pickle file holds.

    Written by any Python and numpy, with any pickle protocol.

    Args:
        path: A local path, or one that mmengine's file backends know.

    Raises:
        ConfigError: The file cannot be read, is no complete pickle of a dict, or asks for anything
            but arrays of numbers and plain containers. None of its code has run then.
    """
    try:
        content = _ArrayUnpickler(get(path), path).load()
        return {
            key: value.value if isinstance(value, _Array) else value
            for key, value in content.items()
        }
    except ConfigError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise ConfigError(
            f'{path}: cannot be read ({type(error).__name__}: {error}); should be a whole '
            'pickle file that holds a dict'
        ) from error
