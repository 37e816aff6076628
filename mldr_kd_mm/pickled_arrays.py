"""Arrays out of pickles, rebuilt here instead of by what the pickle asks for.

numpy's own functions are not safe to give to a pickle: ``numpy.ndarray`` called with an object
dtype takes bytes for pointers, and a dtype's state can make any array do so.
"""

from __future__ import annotations

from typing import Any

import numpy as np


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
