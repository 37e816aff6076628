"""Atomic file writes."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from mmengine.fileio import LocalBackend, get_file_backend, register_backend

from mldr_kd_mm.utils.atomic_files import AtomicFileBackend, atomic_write, use_atomic_writes


def test_replaces_the_old_file(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')

    with atomic_write(path) as file:
        file.write(b'new')
        assert path.read_text() == 'old'

    assert path.read_text() == 'new'
    assert list(tmp_path.iterdir()) == [path]


def test_leaves_the_old_file_after_an_error(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')

    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b'new')
        raise KeyboardInterrupt

    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / 'file'

    with atomic_write(path) as first, atomic_write(path) as second:
        first.write(b'a' * 10)
        second.write(b'b' * 5)
        first.write(b'a' * 10)

    assert path.read_text() == 'a' * 20  # the last to finish
    assert list(tmp_path.iterdir()) == [path]


def test_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    for name in ('fsync', 'replace'):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, r=real: (done.append(n), r(*a))[1])

    with atomic_write(tmp_path / 'file') as file:
        file.write(b'new')

    assert done == ['fsync', 'replace', 'fsync']  # the file, its name, the folder


@pytest.mark.parametrize('moment', ['fsync', 'replace'])
def test_a_killed_process_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / 'file'
    path.write_text('old')

    child = os.fork()
    if child == 0:
        setattr(os, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with atomic_write(path) as file:
            file.write(b'new')
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == 'old'


def test_a_file_that_cannot_be_written_raises_and_leaves_nothing(tmp_path):
    (tmp_path / 'file').mkdir()

    with (
        pytest.raises(OSError, match='directory') as caught,
        atomic_write(tmp_path / 'file') as file,
    ):
        file.write(b'new')

    assert caught.value.errno == errno.EISDIR
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_mmengine_writes_through_it(tmp_path):
    try:
        use_atomic_writes()
        backend = get_file_backend(str(tmp_path / 'folder' / 'file'))
        backend.put_text('text', str(tmp_path / 'folder' / 'file'))
    finally:
        register_backend('local', LocalBackend, force=True, prefixes='')

    assert type(backend) is AtomicFileBackend
    assert (tmp_path / 'folder' / 'file').read_text() == 'text'
