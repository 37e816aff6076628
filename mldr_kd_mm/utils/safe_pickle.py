"""Arrays out of pickles, rebuilt here instead of by what the pickle asks for.

numpy's own functions are not safe to give to a pickle: ``numpy.ndarray`` called with an object
dtype takes bytes for pointers, and a dtype's state can make any array do so.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from mmengine.fileio import get

from mldr_kd_mm.utils.errors import ConfigError


class PickledDType:
    """Stands in for ``numpy.dtype``.

    Attributes:
        value: The dtype; None if it is not of numbers.
    """

    def __init__(self, code: str, *_: Any) -> None:
        dtype = np.dtype(code) if isinstance(code, str) else None
        self.value = dtype if dtype is not None and dtype.kind in 'biuf' else None

    def __setstate__(self, state: tuple) -> None:
        byte_order = state[1]
        if self.value is not None:
            self.value = self.value.newbyteorder(byte_order)


class PickledArray:
    """Stands in for an array whose content follows: protocols up to 4.

    Attributes:
        value: The array, read-only; None if it is not of numbers.
    """

    __hash__ = None  # as an array has none

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _rebuild(content, dtype, shape, 'CF'[is_fortran])


def _rebuild(
    content: bytes | str, dtype: PickledDType, shape: tuple, order: str = 'C'
) -> np.ndarray | None:
    if dtype.value is None:
        return None
    if isinstance(content, str):  # the byte strings of Python 2
        content = content.encode('latin1')
    return np.frombuffer(content, dtype.value).reshape(shape, order=order)


def _scalar(dtype: PickledDType, content: bytes | str) -> np.generic | None:
    value = _rebuild(content, dtype, ())
    return None if value is None else value[()]


def _encode(text: str, _: str) -> bytes:
    """Stand in for how protocol 2 of Python 3 writes bytes: always as latin1."""
    return text.encode('latin1')


def _no_bytes() -> bytes:
    """Stand in for how protocol 2 of Python 3 writes bytes of length 0."""
    return b''


STAND_INS = {
    ('builtins', 'bytes'): _no_bytes,
    ('numpy', 'ndarray'): 'ndarray',  # only ever an argument of _reconstruct
    ('numpy', 'dtype'): PickledDType,
    ('_codecs', 'encode'): _encode,
}
for _core in ('numpy.core', 'numpy._core'):  # as numpy 1 and numpy 2 call it
    STAND_INS[f'{_core}.multiarray', '_reconstruct'] = PickledArray
    STAND_INS[f'{_core}.multiarray', 'scalar'] = _scalar
    STAND_INS[f'{_core}.numeric', '_frombuffer'] = _rebuild


class _Numbers(PickledDType):
    def __init__(self, code: str, *_: Any) -> None:
        super().__init__(code)
        if self.value is None:
            raise ValueError(f'an array of dtype {code!r}, not of numbers')


_DATA_STAND_INS = STAND_INS | {('numpy', 'dtype'): _Numbers}


class _ArrayUnpickler(pickle.Unpickler):
    """Answers with ``_DATA_STAND_INS`` and refuses every other global before it is imported."""

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(io.BytesIO(content), encoding='latin1')
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _DATA_STAND_INS:
            raise ConfigError(
                f'{self.path}: refused, it asks for {module}.{name}, and a data set file may hold '
                'arrays and plain containers only'
            )
        return _DATA_STAND_INS[module, name]


def load_pickle(path: str) -> dict:
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
            key: value.value if isinstance(value, PickledArray) else value
            for key, value in content.items()
        }
    except ConfigError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise ConfigError(
            f'{path}: cannot be read ({type(error).__name__}: {error}); should be a whole '
            'pickle file that holds a dict'
        ) from error
