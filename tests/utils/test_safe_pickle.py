"""Pickles of all versions of Python and numpy are read without executing code."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.safe_pickle import load_pickle

ARRAY = np.arange(2 * 300, dtype=np.uint8).reshape(2, 300)  # values from 0 to 255, latin1 or not
CONTENT = {'data': ARRAY, 'fine_labels': [3, 4], 'filenames': ['á.png', 'b.png']}


def write(folder, content: bytes) -> str:
    path = folder / 'train'
    path.write_bytes(content)
    return str(path)


def as_python2_wrote_it(array: np.ndarray) -> bytes:
    """Return the pickle of ``{'data': array}`` in the opcodes of the official files."""

    def string(content: bytes) -> bytes:
        return b'T' + struct.pack('<i', len(content)) + content

    rows, columns = (b'M' + struct.pack('<H', size) for size in array.shape)
    dtype = (
        b'cnumpy\ndtype\n' + string(b'u1') + b'K\x00K\x01\x87R'
        b'(K\x03' + string(b'|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    )
    return (
        b'\x80\x02}' + string(b'data') + b'cnumpy.core.multiarray\n_reconstruct\n'
        b'cnumpy\nndarray\nK\x00\x85' + string(b'b') + b'\x87R'
        b'(K\x01' + rows + columns + b'\x86' + dtype + b'\x89' + string(array.tobytes()) + b'tbs.'
    )


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_what_pickle_writes(tmp_path, protocol):
    fortran = np.asfortranarray(ARRAY[:, :3])
    content = {**CONTENT, 'fortran': fortran, 'big': ARRAY.astype('>i2'), 'scalar': np.int64(7)}
    read = load_pickle(write(tmp_path, pickle.dumps(content, protocol)))
    assert read.keys() == content.keys()
    assert read['fine_labels'] == [3, 4]
    assert read['filenames'] == CONTENT['filenames']
    assert read['scalar'] == 7
    for key in ('data', 'fortran', 'big'):
        assert read[key].dtype == content[key].dtype
        np.testing.assert_array_equal(read[key], content[key])


@pytest.mark.parametrize('core', [b'numpy.core', b'numpy._core'])
def test_reads_the_files_of_numpy_1_and_2(tmp_path, core):
    # Protocol 2 ends a name with a newline, so that a name of another length can stand there.
    content = pickle.dumps(CONTENT, 2).replace(b'numpy._core', b'numpy.core')
    assert b'numpy.core.multiarray\n' in content
    read = load_pickle(write(tmp_path, content.replace(b'numpy.core', core)))
    np.testing.assert_array_equal(read['data'], ARRAY)


def test_reads_the_dialect_of_the_official_files(tmp_path):
    content = as_python2_wrote_it(ARRAY)
    np.testing.assert_array_equal(pickle.loads(content, encoding='latin1')['data'], ARRAY)
    np.testing.assert_array_equal(load_pickle(write(tmp_path, content))['data'], ARRAY)


class Calls:
    """Pickles to a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('protocol', [0, 2, 4, 5])
@pytest.mark.parametrize(('function', 'name'), [(os.mkdir, f'{os.name}.mkdir'), (exec, 'exec')])
def test_runs_no_code(tmp_path, protocol, function, name):
    canary = tmp_path / 'canary'
    argument = str(canary) if function is os.mkdir else f'import os; os.mkdir({str(canary)!r})'
    content = pickle.dumps({**CONTENT, 'evil': Calls(function, argument)}, protocol)
    path = write(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_pickle(path)
    assert not canary.exists()
    assert path in str(caught.value)
    assert name in str(caught.value)
    assert '\n' not in str(caught.value)

    pickle.loads(content)
    assert canary.exists(), 'the file is harmless, so the test shows nothing'


@pytest.mark.parametrize(
    'content',
    [
        # numpy itself would take these bytes for pointers to objects.
        {'data': Calls(np.ndarray, (1,), 'O', b'A' * 8)},
        b'\x80\x02}X\x04\x00\x00\x00datacnumpy\ndtype\nX\x01\x00\x00\x00OK\x00K\x01\x87Rs.',
        {'data': np.array([object], dtype=object)},
        {'data': np.zeros(2, dtype='V8')},
        {'data': np.array(['text'])},
    ],
    ids=['pointer', 'object dtype', 'object array', 'void', 'text'],
)
def test_refuses_arrays_of_anything_but_numbers(tmp_path, content):
    if not isinstance(content, bytes):
        content = pickle.dumps(content, 2)
    with pytest.raises(ConfigError, match='train'):
        load_pickle(write(tmp_path, content))


@pytest.mark.parametrize(
    'content', [b'', b'not a pickle', pickle.dumps([1, 2]), pickle.dumps(None)]
)
def test_refuses_what_is_no_pickle_of_a_dict(tmp_path, content):
    with pytest.raises(ConfigError, match='train: cannot be read .* pickle file that holds a dict'):
        load_pickle(write(tmp_path, content))


@pytest.mark.parametrize('protocol', [2, 4])
def test_refuses_a_truncated_file(tmp_path, protocol):
    content = pickle.dumps(CONTENT, protocol)
    for length in range(0, len(content), 7):
        with pytest.raises(ConfigError, match='train: cannot be read'):
            load_pickle(write(tmp_path, content[:length]))


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match='absent: cannot be read'):
        load_pickle(str(tmp_path / 'absent'))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory, data):
    content = bytearray(pickle.dumps({'data': ARRAY[:, :4], 'fine_labels': [3, 4]}, 2))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        assert isinstance(load_pickle(path), dict)
    except ConfigError as error:
        assert path in str(error)
