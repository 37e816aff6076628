"""The work directory of a run: its lock, and what happens to an earlier run."""

from __future__ import annotations

import fcntl
import os
import signal

import pytest
from mmengine.config import Config

from mldr_kd_mm import ConfigError
from mldr_kd_mm.engine.work_dir import LOCK, claim_work_dirs, lock_work_dir, unlock_work_dir

RUN = ('epoch_3.pth', 'iter_40.pth', 'best_accuracy_top1_epoch_2.pth', 'last_checkpoint')
OTHERS = ('pretrained.pth', 'my_epoch_3.pth', 'epoch_3.py', 'student.pth', 'teacher/epoch_3.pth')


def config(work_dir, **fields):
    return Config(dict(work_dir=str(work_dir)) | fields)


def claim(work_dir, resume=False, overwrite=False, **fields):
    with claim_work_dirs([(config(work_dir, **fields), resume)], overwrite):
        return names(work_dir)


def names(folder):
    paths = (path.relative_to(folder) for path in folder.rglob('*') if path.is_file())
    return {str(path) for path in paths if path.name != LOCK}


@pytest.fixture
def used(tmp_path):
    """Return a work directory with a run and files of other kinds."""
    (tmp_path / 'teacher').mkdir()
    for name in RUN + OTHERS:
        (tmp_path / name).write_text(name)
    return tmp_path


def in_child(function, *args):
    """Return the message of the ConfigError that a forked process raises, or ''."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        message = ''
        try:
            function(*args)
        except ConfigError as error:
            message = str(error)
        os.write(theirs, message.encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with open(ours) as file:
        return file.read()


def test_a_second_process_is_told_who_is_training(tmp_path):
    with claim_work_dirs([(config(tmp_path), False)], False):
        message = in_child(lock_work_dir, str(tmp_path))
        relative = in_child(lock_work_dir, os.path.relpath(tmp_path))
        elsewhere = in_child(lock_work_dir, str(tmp_path / 'other'))

    assert f'process {os.getpid()} on ' in message and 'is training here' in message
    assert 'is training here' in relative
    assert elsewhere == ''
    assert in_child(lock_work_dir, str(tmp_path)) == ''  # a lock file alone is no obstacle


def test_the_file_of_a_lock_is_deleted(tmp_path):
    """Also after an error; a process that had opened the deleted file takes another one."""
    with pytest.raises(ValueError), claim_work_dirs([(config(tmp_path / 'run'), False)], False):
        raise ValueError
    assert not [*(tmp_path / 'run').iterdir()]
    lock_work_dir(str(tmp_path))
    (tmp_path / LOCK).replace(tmp_path / 'moved')
    assert in_child(lock_work_dir, str(tmp_path)) == ''
    unlock_work_dir(str(tmp_path))
    assert (tmp_path / LOCK).exists()  # it is that of the other process


def test_a_file_that_was_deleted_before_it_was_locked(tmp_path, monkeypatch):
    lockf = fcntl.lockf

    def delete_first(file, flags):
        monkeypatch.undo()
        (tmp_path / LOCK).unlink()
        lockf(file, flags)

    monkeypatch.setattr(fcntl, 'lockf', delete_first)
    lock_work_dir(str(tmp_path))
    assert 'is training here' in in_child(lock_work_dir, str(tmp_path))
    unlock_work_dir(str(tmp_path))


def test_a_run_within_a_claimed_directory_leaves_the_claim(tmp_path):
    with claim_work_dirs([(config(tmp_path), False)], False):
        assert lock_work_dir(str(tmp_path)) is False
        claim(tmp_path)
        assert 'is training here' in in_child(lock_work_dir, str(tmp_path))
    assert lock_work_dir(str(tmp_path)) is True
    unlock_work_dir(str(tmp_path))


def test_a_killed_process_leaves_no_lock_though_its_workers_live(tmp_path):
    ready = os.pipe()
    child = os.fork()
    if child == 0:
        lock_work_dir(str(tmp_path))
        worker = os.fork()
        if worker == 0:
            signal.pause()
        os.write(ready[1], str(worker).encode())
        signal.pause()
    worker = int(os.read(ready[0], 20))
    try:
        with pytest.raises(ConfigError, match=f'process {child} on .* is training here'):
            lock_work_dir(str(tmp_path))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert lock_work_dir(str(tmp_path)) is True
        unlock_work_dir(str(tmp_path))
    finally:
        os.kill(worker, signal.SIGKILL)


def test_an_earlier_run_is_kept(used):
    before = names(used)
    with pytest.raises(ConfigError, match='--resume .*--overwrite .*another work directory') as e:
        claim(used)
    assert len(str(e.value).splitlines()) == 1
    assert names(used) == before
    assert claim(used, resume=True) == before
    assert claim(used, resume=True, overwrite=True) == before  # a restart of a new run
    assert in_child(lock_work_dir, str(used)) == ''


@pytest.mark.parametrize('name', RUN)
def test_each_file_of_a_run_counts(tmp_path, name):
    (tmp_path / name).mkdir()  # some strategies write checkpoints that are directories
    with pytest.raises(ConfigError, match='has checkpoints of an earlier run'):
        claim(tmp_path)


def test_overwriting_deletes_the_run_and_nothing_else(used, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    (other / 'kept').write_text('')
    (used / 'epoch_4.pth').symlink_to(other)
    (used / 'epoch_5.pth').mkdir()

    assert claim(used, overwrite=True) == set(OTHERS)
    assert names(other) == {'kept'}
    assert claim(used) == set(OTHERS)


@pytest.mark.parametrize('place', ['load_from', 'model'])
def test_overwriting_keeps_what_the_config_reads(used, monkeypatch, place):
    before = names(used)
    monkeypatch.chdir(used.parent)
    path = f'{used.name}/epoch_3.pth'
    fields = dict(load_from=path) if place == 'load_from' else dict(model=dict(teachers=[path]))
    with pytest.raises(ConfigError, match=r'would delete .*epoch_3.pth, which the config reads'):
        claim(used, overwrite=True, **fields)
    assert names(used) == before


def test_overwriting_needs_all_directories(used, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    (other / 'epoch_1.pth').write_text('')
    runs = [(config(used), False), (config(other, load_from=str(other / 'epoch_1.pth')), False)]
    before = names(used)
    with pytest.raises(ConfigError, match='which the config reads'):
        with claim_work_dirs(runs, True):
            pass
    assert names(used) == before
    assert in_child(lock_work_dir, str(used)) == ''


@pytest.mark.parametrize('name', ['file', 'file/below'])
def test_a_directory_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match=r'work_dir=.*: cannot be written: \w+'):
        claim(tmp_path / name)
