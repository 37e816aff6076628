"""Read arrays from pickles without executing their code.

A pickle names the functions that rebuild its objects. Here stand-ins take the place of numpy's
functions, which are not safe to call with arguments from a file: ``numpy.ndarray`` with an object
dtype takes bytes for pointers, and so does any array after its dtype was changed.

:func:`load_pickle` reads the pickles of data sets; :mod:`mldr_kd_mm.utils.checkpoint` gives
:data:`STAND_INS` to ``torch.load``.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from mmengine.fileio import get

from mldr_kd_mm.utils.errors import ConfigError, printable
from mldr_kd_mm.utils.pickle_scan import check_pickle


class PickledDType:
    """Stand-in for ``numpy.dtype``.

    Attributes:
        value: The dtype, or None if it is not numeric.
    """

    def __init__(self, code: str, *_: Any) -> None:
        dtype = np.dtype(code) if isinstance(code, str) else None
        self.value = dtype if dtype is not None and dtype.kind in 'biuf' else None

    def __setstate__(self, state: tuple) -> None:
        byte_order = state[1]
        if self.value is not None:
            self.value = self.value.newbyteorder(byte_order)


class PickledArray:
    """Stand-in for an array whose content follows as its state (pickle protocols up to 4).

    Attributes:
        value: The array, read-only, or None if it is not numeric.
    """

    __hash__ = None  # as an array

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = _rebuild_array(content, dtype, shape, 'CF'[is_fortran])


def _rebuild_array(
    content: bytes | str, dtype: PickledDType, shape: tuple, order: str = 'C'
) -> np.ndarray | None:
    """Stand in for numpy's function that rebuilds an array (pickle protocol 5)."""
    if dtype.value is None:
        return None
    if isinstance(content, str):  # a byte string of Python 2
        content = content.encode('latin1')
    return np.frombuffer(content, dtype.value).reshape(shape, order=order)


def _rebuild_scalar(dtype: PickledDType, content: bytes | str) -> np.generic | None:
    value = _rebuild_array(content, dtype, ())
    return None if value is None else value[()]


def _encode_latin1(text: str, _: str) -> bytes:
    """Rebuild bytes that Python 3 wrote with protocol 2, which are always encoded as latin1."""
    return text.encode('latin1')


def _make_empty_bytes() -> bytes:
    """Rebuild bytes of length 0 that Python 3 wrote with protocol 2."""
    return b''


# (module, name) in a pickle -> what is called instead.
STAND_INS = {
    ('builtins', 'bytes'): _make_empty_bytes,
    ('numpy', 'ndarray'): 'ndarray',  # is only ever an argument of _reconstruct
    ('numpy', 'dtype'): PickledDType,
    ('_codecs', 'encode'): _encode_latin1,
}
for _core in ('numpy.core', 'numpy._core'):  # the names of numpy 1 and numpy 2
    STAND_INS[f'{_core}.multiarray', '_reconstruct'] = PickledArray
    STAND_INS[f'{_core}.multiarray', 'scalar'] = _rebuild_scalar
    STAND_INS[f'{_core}.numeric', '_frombuffer'] = _rebuild_array


class _NumericDType(PickledDType):
    """Stand-in for ``numpy.dtype`` that raises if the dtype is not numeric."""

    def __init__(self, code: str, *_: Any) -> None:
        super().__init__(code)
        if self.value is None:
            raise ValueError(f'an array of dtype {code!r}, not of numbers')


_NUMERIC_STAND_INS = STAND_INS | {('numpy', 'dtype'): _NumericDType}


class _Unpickler(pickle.Unpickler):
    """Unpickler that only resolves names in ``_NUMERIC_STAND_INS`` and imports nothing."""

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(io.BytesIO(content), encoding='latin1')
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMERIC_STAND_INS:
            raise ConfigError(
                f'{self.path}: refused, it asks for {module}.{name}; a data set file must hold '
                'only arrays and plain containers'
            )
        return _NUMERIC_STAND_INS[module, name]


def load_pickle(path: str) -> dict:
    """Load a pickle file that holds a dict of arrays, lists, numbers and strings.

    The file may come from any version of Python and numpy and use any pickle protocol.

    Args:
        path: Local path, or one that mmengine's file backends know.

    Returns:
        The dict; its arrays are read-only.

    Raises:
        ConfigError: The file cannot be read, is truncated, is not a dict, or asks for anything but
            numeric arrays and plain containers. None of its code has been executed.
    """
    try:
        pickled = get(path)
        check_pickle(io.BytesIO(pickled), len(pickled))
        content = _Unpickler(pickled, path).load()
        return {
            key: value.value if isinstance(value, PickledArray) else value
            for key, value in content.items()
        }
    except ConfigError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise ConfigError(
            f'{path}: cannot be read ({type(error).__name__}: {printable(error)}); must be a '
            'complete pickle file that holds a dict'
        ) from error
