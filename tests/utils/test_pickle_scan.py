"""Small pickles that would take gigabytes or years are refused before they are loaded."""

from __future__ import annotations

import io
import pickle
import struct
import time
import tracemalloc
from argparse import Namespace
from collections import Counter, OrderedDict
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mldr_kd_mm.utils.checkpoint import load_checkpoint
from mldr_kd_mm.utils.errors import ConfigError
from mldr_kd_mm.utils.pickle_scan import check_pickle
from mldr_kd_mm.utils.safe_pickle import load_pickle


def text(content: str) -> bytes:
    return b'X' + struct.pack('<I', len(content)) + content.encode()


def doubled(first: bytes, step: bytes, times: int = 40) -> bytes:
    """Return the instructions of an object that holds the one before it twice."""
    return first + b''.join(b'q\x01h\x01' + step for _ in range(times))


def call(function: str, *arguments: bytes) -> bytes:
    return b'c' + function.replace(' ', '\n').encode() + b'\n(' + b''.join(arguments) + b'tR'


LONG = b'\x8a\x14' + bytes(range(1, 21))
TUPLES = doubled(b')', b'\x86')
LISTS = b']q\x01' + b''.join(b']q\x02h\x01ah\x01aq\x01' for _ in range(40))
BOMBS = {
    'value of tuples': b'}' + text('a') + TUPLES + b's',
    'label of tuples': b'}' + text('fine_labels') + b']' + TUPLES + b'as',
    'key of tuples': b'}' + TUPLES + b'Ns',
    'keys of tuples': b'}(' + TUPLES + b'Nu',
    'lists': b'}' + text('a') + LISTS + b's',
    'dicts': b'}'
    + text('a')
    + b'}q\x01'
    + b''.join(b'}q\x02K\x00h\x01sK\x01h\x01sq\x01' for _ in range(40))
    + b's',
    'set of tuples': b'}' + text('a') + call('builtins set', b']' + TUPLES + b'a') + b's',
    'numbers of tuples': b'}' + text('a') + call('torch Tensor', LISTS) + b's',
    'scales of a tensor': b'}' + text('a') + call('torch._utils _rebuild_qtensor', LISTS) + b's',
    'number of an object': b'}r\xff\xff\xff\x0f',
    'deep lists': b'}' + text('a') + b']' * 400 + b'a' * 399 + b's',
    'deep tuples': b'}' + b')' + b'\x85' * 25_000 + b'Ns',
    'tuples that may collide': b'}' + b'(K\x01K\x02\x86Nu' * 20_000,
    'numbers that may collide': b'}' + (b'(' + LONG + b'Nu') * 20_001,
    'set that is made repeatedly': b'}]q\x01(' + b'K\x01' * 5000 + b'e0'
    b'cbuiltins\nset\nq\x02' + b'h\x02h\x01\x85R0' * 5000 + b'0',
    'bytes that are made repeatedly': b'}' + text('a' * 50_000) + b'q\x01'
    + text('latin1') + b'q\x02'
    b'c_codecs\nencode\nq\x03' + b'h\x03h\x01h\x02\x86R0' * 200 + b'000',
    'arrays that are made repeatedly': b'}' + text('a' * 50_000) + b'q\x01'
    b'cnumpy.core.multiarray\n_reconstruct\nq\x02' + b'h\x02)Rh\x01\x85b0' * 200 + b'00',
    'digits that double': b'}' + text('a') + call(
        '_codecs encode', call('_codecs encode', text('a'), text('hex')), text('hex')
    ) + b's',
    'digits in another encoding': b'}' + text('a') + call(
        '_codecs encode', text('a'), text('unicode_escape')
    ) + b's',
}  # fmt: skip


@pytest.mark.parametrize('name', BOMBS)
def test_bombs(name):
    content = b'\x80\x02' + BOMBS[name] + b'.'
    started = time.perf_counter()
    with pytest.raises(ValueError, match='its pickle') as caught:
        check_pickle(io.BytesIO(content), len(content))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 200
    assert time.perf_counter() - started < 10  # about 1 s


@pytest.mark.parametrize('name', ['value of tuples', 'label of tuples', 'number of an object'])
@pytest.mark.parametrize('reader', ['checkpoint', 'legacy checkpoint', 'data set'])
def test_readers_refuse_bombs(tmp_path, name, reader):
    content, path = b'\x80\x02' + BOMBS[name] + b'.', tmp_path / 'file'
    if reader == 'checkpoint':
        torch.save({'a': torch.ones(1)}, path)
        with ZipFile(path) as archive:
            records = {name: archive.read(name) for name in archive.namelist()}
        with ZipFile(path, 'w') as archive:
            for name, old in records.items():
                archive.writestr(name, content if name.endswith('data.pkl') else old)
    elif reader == 'legacy checkpoint':
        torch.save({}, path, _use_new_zipfile_serialization=False)
        magic, protocol, system, *_ = pickles(path.read_bytes())
        path.write_bytes(magic + protocol + system + content + pickle.dumps([], 2))
    else:
        path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match='cannot be read .*its pickle') as caught:
            (load_pickle if reader == 'data set' else load_checkpoint)(str(path))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def pickles(content: bytes) -> list[bytes]:
    """Return the pickles at the beginning of a file."""
    stream, parts = io.BytesIO(content), []
    while stream.tell() < len(content):
        start = stream.tell()
        check_pickle(stream, len(content))
        parts.append(content[start : stream.tell()])
    return parts


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
    ),
    max_leaves=20,
)


@settings(max_examples=50, deadline=None)
@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_accepts_what_pickle_writes(content, protocol):
    pickled = pickle.dumps(content, protocol)
    stream = io.BytesIO(pickled + b'more')
    check_pickle(stream, len(pickled))
    assert stream.read() == b'more'


def test_accepts_many_honest_objects():
    """Objects of all kinds, more of them than a large model has tensors."""
    shared = ('exp_avg', (0.9, 0.999))
    content = dict(
        weights=OrderedDict((f'layer.{i}.weight', np.zeros(3)) for i in range(2000)),
        optimizer={i: dict(step=i, exp_avg=shared, exp_avg_sq=shared) for i in range(2000)},
        milestones=Counter({10: 1, 20: 1}),
        labels=list(range(20_000)),
        files=[f'{i}.png' for i in range(20_000)],
        arguments=Namespace(policy=[('rotate', 0.5)] * 100, names={'a', 'b'}),
        pairs={(i, i + 1): 0.5 for i in range(2000)},
        seed=2**127,
    )
    for protocol in (2, 4):
        pickled = pickle.dumps(content, protocol)
        names = check_pickle(io.BytesIO(pickled), len(pickled))
        assert 'argparse.Namespace' in names


@pytest.mark.parametrize('path', ['_rebuild_sparse_tensor', '_rebuild_nested_tensor'])
def test_only_dense_tensors_are_rebuilt(tmp_path, path):
    tensor = torch.eye(3).to_sparse()
    if 'nested' in path:
        tensor = torch.nested.nested_tensor([torch.ones(2)])
    torch.save({'a': tensor}, tmp_path / 'a.pth')
    with pytest.raises(ConfigError, match=f'refused: it asks for torch._utils.{path}'):
        load_checkpoint(str(tmp_path / 'a.pth'))


def test_a_bytearray_is_refused(tmp_path):
    """Its length is an argument."""
    torch.save({'a': bytearray(3)}, tmp_path / 'a.pth')
    with pytest.raises(ConfigError, match='refused: it asks for .*bytearray'):
        load_checkpoint(str(tmp_path / 'a.pth'))


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_a_view_that_repeats_a_number_is_refused(tmp_path, legacy, device):
    """0.4 TB of one number."""
    content = {'a': torch.ones(1).expand(10**6, 10**5)}
    path = Path(tmp_path, 'a.pth')
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ConfigError, match='its tensors have 400000000000 bytes, the file only'):
        load_checkpoint(str(path), map_location=device)


def test_shared_tensors_and_arrays_stay_shared(tmp_path):
    array, tensor = np.arange(3), torch.ones(3)
    content = dict(a=array, b=(array, [array]), c=tensor, d=tensor, e=tensor[None].expand(50, -1))
    torch.save(content, tmp_path / 'a.pth')
    read = load_checkpoint(str(tmp_path / 'a.pth'))
    assert read['a'] is read['b'][0] is read['b'][1][0]
    assert read['c'] is read['d'] and read['e'].data_ptr() == read['c'].data_ptr()
