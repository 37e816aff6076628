"""Locks between processes."""

import os

import pytest

from mldr_kd_mm.utils.file_lock import lock_file


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / 'lock'
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with lock_file(path):
            os.write(ready[1], b'x')
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(BlockingIOError), lock_file(path, wait=False):
        pass
    os.write(go[1], b'x')
    with lock_file(path):  # waits for the child
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
