"""Read a pickle of arrays and plain containers without running what else it may hold."""

from __future__ import annotations

import io
import pickle
from typing import Any

from mmengine.fileio import get

from mldr_kd_mm import pickled_arrays
from mldr_kd_mm.errors import ConfigError
from mldr_kd_mm.pickled_arrays import PickledArray, PickledDType


class _Numbers(PickledDType):
    def __init__(self, code: str, *_: Any) -> None:
        super().__init__(code)
        if self.value is None:
            raise ValueError(f'an array of dtype {code!r}, not of numbers')


STAND_INS = pickled_arrays.STAND_INS | {('numpy', 'dtype'): _Numbers}


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
